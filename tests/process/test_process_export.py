"""targetdctl export against a running server."""

from daemon import TARGET, watched

from targetd.config import loader


def exported(daemon, tmp_path, *words):
    """(exit code, what was said, the exported Configuration)."""
    path = str(tmp_path / 'exported.conf')
    code, said = daemon.targetdctl('export', '--output', path, '--force', *words)
    return code, said, loader.load(path)


def test_the_running_configuration_is_exported(tmp_path):
    (tmp_path / 'targetd').mkdir()
    with watched(tmp_path / 'targetd') as daemon:
        lines = ['initiator-address = ALL', 'alua = implicit', 'incominguser = joe 12-to-16-chars']
        daemon.target(lines=lines)
        daemon.start()
        code, said, configuration = exported(daemon, tmp_path)
        running = loader.load(daemon.config)
        assert code == 0, said
        assert configuration._replace(files=(), places={}) == running._replace(files=(), places={})

        assert daemon.targetdctl('alua', TARGET, '1', 'standby')[0] == 0
        code, said, configuration = exported(daemon, tmp_path, '--identities')
        unit = daemon.units()[0]
        target = configuration.targets[TARGET]
        assert code == 0 and target.alua_state == ((1, 'standby'),)
        assert (target.luns[0].naa, target.luns[0].scsi_sn) == ((unit['naa'],), unit['serial'])

        daemon.text.targets[TARGET][0].append('alias = not in force')
        daemon.write_config()
        code, said, _ = exported(daemon, tmp_path)
        assert code == 1 and 'is not in force: change target %s: alias' % TARGET in said
