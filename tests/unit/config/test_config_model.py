"""The model's classes, and the steps from one configuration to another."""

import pytest

from targetd.config import model, settings

A, B = 'iqn.2026-11.com.example:a', 'iqn.2026-11.com.example:b'


def configuration(*targets, **more):
    return model.configuration(targets=targets, **more)


def one(old, new):
    steps = model.diff(old, new)
    assert len(steps) == 1, steps
    return steps[0]


def test_equal_configurations_need_no_step():
    old = configuration(model.Target(A, luns={0: model.Lun(0, '/a')}))
    assert model.diff(old, old._replace(files=('x',), places={('server',): ('x', 1)})) == []


def test_the_classes_have_every_setting_and_are_immutable():
    for row in settings.SERVER:
        assert getattr(model.Server(), row.field) == row.default
    assert set(model.Target(A).keys) == {row.name for row in settings.TEXT_KEYS}
    for thing in (model.Server(), model.Lun(0), model.Target(A), model.PortalGroup(1, ())):
        with pytest.raises(AttributeError):
            setattr(thing, thing._fields[0], 1)


@pytest.mark.parametrize(
    'section, cls', [('server', model.Server), ('lun', model.Lun), ('target', model.Target)]
)
def test_every_attribute_belongs_to_a_row(section, cls):
    for field in cls._fields:
        if field not in ('name', 'number', 'luns', 'keys'):
            assert model.row_of(section, field).live in settings.WHEN


def test_a_changed_server_setting():
    step = one(configuration(), configuration(server=model.Server(max_sessions=3)))
    assert step == model.ChangeServer('max_sessions', 64, 3)
    assert model.described(step) == 'change max-sessions from 64 to 3 (immediately)'
    assert (
        one(configuration(), configuration(server=model.Server(pid_file='/x'))).when
        == settings.NEEDS_RESTART
    )


def test_portals():
    old = configuration(
        portal_groups=[
            model.PortalGroup(1, (('10.0.0.1', 3260),)),
            model.PortalGroup(2, (('::1', 3260),)),
        ]
    )
    new = configuration(portal_groups=[model.PortalGroup(1, (('10.0.0.1', 3260), ('::1', 3260)))])
    assert model.diff(old, new) == [
        model.RemovePortal(2, ('::1', 3260)),
        model.AddPortal(1, ('::1', 3260)),
    ]
    assert [step.text for step in model.diff(old, new)] == [
        'no longer listen on [::1]:3260 for portal group 2',
        'listen on [::1]:3260 for portal group 1',
    ]


def test_the_portals_of_a_changed_group_are_opened_again_if_their_sockets_differ():
    portals = (('10.0.0.1', 3260), ('::1', 3260))
    old = configuration(portal_groups=[model.PortalGroup(1, portals[:1])])
    for change, reopened in (({'mss': 1288}, portals[:1]), ({'advertise': 'none'}, ())):
        new = configuration(portal_groups=[model.PortalGroup(1, portals, **change)])
        changed, added = model.diff(old, new)
        assert changed.reopened == reopened
        assert added == model.AddPortal(1, portals[1])
    assert changed.text == 'change portal group 1: advertise from nothing to none'
    assert changed.when == settings.NEXT_LOGIN


def test_targets_are_added_and_removed():
    a, b = model.Target(A, luns={0: model.Lun(0, '/a')}), model.Target(B)
    steps = model.diff(configuration(a), configuration(b))
    assert steps == [model.RemoveTarget(a), model.AddTarget(b)]
    assert [step.when for step in steps] == [settings.NEEDS_LOGOUT, settings.LIVE]
    assert [step.text for step in steps] == ['remove target ' + A, 'add target %s with 0 LUNs' % B]
    assert model.AddTarget(a).text == 'add target %s with 1 LUN' % A


def test_a_changed_target_lists_what_changed_and_the_latest_effect():
    old, new = model.Target(A), model.Target(A, initiator_addresses=('ALL',))
    assert one(configuration(old), configuration(new)).when == settings.LIVE
    new = new._replace(alias='x', keys=dict(new.keys, MaxBurstLength=512))
    step = one(configuration(old), configuration(new))
    assert (
        step.fields == ('alias', 'initiator_addresses', 'MaxBurstLength')
        and step.when == settings.NEXT_LOGIN
    )
    assert step.text == (
        'change target %s: alias from nothing to x, initiator-address from nothing to ALL, '
        'MaxBurstLength from 1048576 to 512' % A
    )


def test_a_step_never_shows_a_secret():
    old = configuration(model.Target(A, accounts=(('u', 'old-hidden'),), outgoing=('o', 'hidden')))
    new = configuration(
        model.Target(A, accounts=(('u', 'new-hidden'), ('v', 'hidden'))),
        server=model.Server(
            incomingdiscoveryuser=(('d', 'hidden'),), outgoingdiscoveryuser=('e', 'hidden')
        ),
    )
    texts = '\n'.join(model.described(step) for step in model.diff(old, new) + model.diff(new, old))
    assert 'hidden' not in texts and 'the accounts u, v' in texts and 'the accounts e' in texts
    secret_only = configuration(
        model.Target(A, accounts=(('u', 'new-hidden'),), outgoing=('o', 'hidden'))
    )
    assert one(old, secret_only).text == 'change target %s: incominguser (secrets)' % A


def test_luns_are_added_removed_and_changed():
    old = configuration(
        model.Target(A, luns={0: model.Lun(0, '/a'), 1: model.Lun(1, '/b'), 2: model.Lun(2, '/c')})
    )
    new = configuration(
        model.Target(
            A,
            luns={
                0: model.Lun(0, '/a', write_cache=False),
                1: model.Lun(1, '/c'),
                3: model.Lun(3, '/b'),
            },
        )
    )
    steps = model.diff(old, new)
    assert [type(step).__name__ for step in steps] == [
        'RemoveLun',
        'ChangeLun',
        'ChangeLun',
        'AddLun',
    ]
    assert [step.when for step in steps] == [
        settings.LIVE,
        settings.LIVE,
        settings.NEEDS_LOGOUT,
        settings.LIVE,
    ]
    assert steps[1].fields == ('write_cache',)
    assert steps[1].text == 'change lun 0 of target %s: write-cache from yes to no' % A
    assert steps[2].text == 'change lun 1 of target %s: backing-store from /b to /c' % A
    assert steps[3].text == 'add lun 3 (/b) to target %s' % A


def test_steps_that_free_a_store_precede_those_that_need_it():
    old = configuration(model.Target(A, luns={0: model.Lun(0, '/a'), 1: model.Lun(1, '/b')}))
    new = configuration(
        model.Target(A, luns={0: model.Lun(0, '/c')}), model.Target(B, luns={0: model.Lun(0, '/b')})
    )
    assert [type(step).__name__ for step in model.diff(old, new)] == [
        'RemoveLun',
        'ChangeLun',
        'AddTarget',
    ]


def test_direct_store_is_a_change_of_the_lun():
    old, new = (
        configuration(model.Target(A, luns={0: model.Lun(0, '/a', direct=d)}))
        for d in (False, True)
    )
    step = one(old, new)
    assert (
        step.fields == ('direct',)
        and step.when == settings.NEEDS_LOGOUT
        and 'direct-store from no to yes' in step.text
    )
