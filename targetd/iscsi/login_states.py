"""The states of a login at the target, and the transitions between them. Pure; no imports.

START --CSG 0--> SECURITY --AuthMethod=CHAP--> CHAP_ALGORITHM --CHAP_A--> CHAP_RESPONSE
  |                 |                                                          | CHAP_N, CHAP_R
  |                 +--T bit, no account is required--> SECURED <--------------+
  |                                                     |     |
  +--CSG 1--> OPERATIONAL <--NSG 1----------------------+     |
                  |                                           |
                  +--T bit--> CLAIMING <--NSG 3---------------+
                                  |
                                  +--claim_granted(tsih)--> DONE        any state --failure--> FAILED
"""

START = 'start'
SECURITY = 'security'
CHAP_ALGORITHM = 'chap-algorithm'
CHAP_RESPONSE = 'chap-response'
SECURED = 'secured'
OPERATIONAL = 'operational'
CLAIMING = 'claiming'
DONE = 'done'
FAILED = 'failed'
STATES = (
    START,
    SECURITY,
    CHAP_ALGORITHM,
    CHAP_RESPONSE,
    SECURED,
    OPERATIONAL,
    CLAIMING,
    DONE,
    FAILED,
)

# fmt: off
TRANSITIONS = {
    (START, 'csg-0'): SECURITY,
    (START, 'csg-1'): OPERATIONAL,
    (SECURITY, 'chap'): CHAP_ALGORITHM,
    (SECURITY, 'none'): SECURED,
    (CHAP_ALGORITHM, 'challenge'): CHAP_RESPONSE,
    (CHAP_RESPONSE, 'proof'): SECURED,
    (SECURED, 'nsg-1'): OPERATIONAL,
    (SECURED, 'nsg-3'): CLAIMING,
    (OPERATIONAL, 'nsg-3'): CLAIMING,
    (CLAIMING, 'claimed'): DONE,
}
# fmt: on
TRANSITIONS.update(((state, 'failure'), FAILED) for state in STATES)

#: The login stage (CSG, RFC 7143 11.12.3) of each state.
STAGES = {SECURITY: 0, CHAP_ALGORITHM: 0, CHAP_RESPONSE: 0, SECURED: 0, OPERATIONAL: 1}
#: States in which no further Login Request is accepted.
FINISHED = (CLAIMING, DONE, FAILED)
