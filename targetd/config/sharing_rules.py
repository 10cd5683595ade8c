"""The rules of the setting `sharing`: which initiators use a LUN at the same time."""

EXCLUSIVE, READERS, CLUSTER = 'exclusive', 'readers', 'cluster'


def sharing_of(lun):
    """How initiators share a model.Lun: one of the words above. Nobody can write a readonly LUN, so all
    have it unless something else is written; a tape, which has one position, is for one in any case."""
    if lun.type == 'tape':
        return EXCLUSIVE
    return lun.sharing or (CLUSTER if lun.readonly else EXCLUSIVE)
