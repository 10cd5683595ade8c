"""Splits the value of a setting into words and items, and joins words to a value.

May import nothing. The rules, which targetd.conf(5) repeats for the administrator:

* Blanks (space, tab) separate words, commas separate the items of a list.
* `#` begins a comment where a word could begin; inside a word it is literal (`secret#1`).
* A word that begins with " or ' ends with the same character. Everything in between is literal:
  blanks, commas, #, $, backslashes. The enclosing quote itself is doubled ('it''s').
* A quote inside a word that does not begin with a quote is literal (`o'brien`). Nothing else is
  special: there are no escapes and no variables.

Invariant: split(join(items)) == items, for words without line ends and NUL.
"""

BLANKS = ' \t'
QUOTES = '"\''
FORBIDDEN = '\n\r\0'


class Unusable(ValueError):
    """A value that cannot be used. text: a clause that describes the error; remedy: what to write
    instead, or ''.

    The value may contain a secret and the text is logged. Therefore this module reports positions
    of characters and never the characters.
    """

    def __init__(self, text, remedy=''):
        super(Unusable, self).__init__(text + ('; ' + remedy if remedy else ''))
        self.text = text
        self.remedy = remedy


def _quoted(text, start):
    """(word, index after the closing quote) of the quoted word that begins at text[start]."""
    quote, word, at = text[start], [], start + 1
    while True:
        end = text.find(quote, at)
        if end < 0:
            raise Unusable(
                'the quote at character %d of the value is never closed' % (start + 1),
                'close it with %s; inside the quotes, double a literal one' % quote,
            )
        word.append(text[at:end])
        if text[end + 1 : end + 2] != quote:
            break
        word.append(quote)
        at = end + 2
    behind = text[end + 1 : end + 2]
    if behind and behind not in BLANKS + ',':
        raise Unusable(
            'a character directly follows the closing quote at character %d of the value'
            % (end + 1),
            'write a blank or a comma between them, or double the quote if it is literal',
        )
    return ''.join(word), end + 1


def _bare(text, start):
    end = start
    while end < len(text) and text[end] not in BLANKS + ',':
        end += 1
    return text[start:end], end


def split(text):
    """'a b, "c, d"  # why' -> [['a', 'b'], ['c, d']]. A comma at the end is allowed. Raises Unusable."""
    items, at = [[]], 0
    while at < len(text):
        character = text[at]
        if character in BLANKS:
            at += 1
        elif character == '#':
            break
        elif character == ',':
            if not items[-1]:
                raise Unusable(
                    'there is a comma where a word is expected', 'write one comma between two items'
                )
            items.append([])
            at += 1
        else:
            word, at = (_quoted if character in QUOTES else _bare)(text, at)
            items[-1].append(word)
    if not items[-1]:
        items.pop()
    return items


def join_word(word):
    """The word as written in a value: quoted if necessary. Raises ValueError for line ends and NUL."""
    if any(character in word for character in FORBIDDEN):
        raise ValueError(
            'a word of the configuration cannot contain a line end or a NUL: %r' % word
        )
    if (
        word
        and word[0] not in QUOTES + '#'
        and ',' not in word
        and word.isprintable()
        and ' ' not in word
    ):
        return word
    quote = "'" if word.startswith('"') else '"'
    return quote + word.replace(quote, quote * 2) + quote


def join(items):
    """The inverse of split: [['a', 'b'], ['c, d']] -> 'a b, "c, d"'."""
    return ', '.join(' '.join(join_word(word) for word in item) for item in items)


def shown_name(name):
    """The name of a setting for a complaint; another text if it may be a piece of a secret."""
    return name if len(name) <= 40 and name.replace('-', '').replace('_', '').isalnum() else 'this'


def counted(number, noun):
    """'1 LUN', '2 LUNs': a number with the singular or plural of a noun."""
    return '%s %s%s' % (number, noun, '' if number == 1 else 's')
