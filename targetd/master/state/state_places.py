"""Where the state of a unit is: state-dir, a directory beside its data, or a pool of a Ceph cluster (setting
unit-state)."""

import json
import os

from targetd.host import identity
from targetd.master.state.rados_state import PREFIX, RadosState, place_text
from targetd.master.state.unit_state import Node, UnitState


def place_of(state, lun):
    """Returns what keeps the state of this model.Lun: the StateDirectory `state`, or a UnitState, which has
    the same methods document, file_of and load, and the attribute node. Raises TargetdError."""
    if not lun.unit_state:
        return state
    if state.this_node is None:
        state.this_node = Node(identity.node_id(state.path), os.uname().nodename)
    if is_pool(lun.unit_state):
        text = place_text(lun.unit_state, lun.ceph_conf, lun.ceph_user)
        return RadosState(text, state.this_node, state.path)
    return UnitState(lun.unit_state, state.this_node)


def is_pool(text):
    """True if a value of unit-state means a pool."""
    return text.startswith(PREFIX)


def store_held(path, text, node):
    """Writes what UnitState.document() returned to its file or object. node: (id, name) of the server that
    must hold the state. Raises OSError as UnitState.save() does."""
    wanted = json.loads(text)
    place = os.path.dirname(path)
    kind = RadosState if is_pool(place) else UnitState
    kind(place, Node(*node)).save(wanted['unit'], wanted['state'], wanted['medium'])
