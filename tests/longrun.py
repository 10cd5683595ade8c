"""Long runs of checks of which the tests do some seconds: python -m tests.longrun NAME.

  ceph        images of a Ceph cluster of one node with libiscsi's suite, a pool at its quota, the resource
              agent, and servers that are killed or suspended under load and replaced, again and again
              (root only; needs Debian's Ceph packages, ceph-mgr, resource-agents and libxml2-utils)
  kills       workers and the master are killed with SIGKILL while sessions write and verify
  floods      strangers flood the portal while honest clients log in, which are timed (root only)
  distance    reads and writes of targetd, tgt and LIO at a round trip of 100 ms, with and without losses,
              beside plain TCP, in the guest; half an hour on an idle machine
  distance-line
              the same with bbr alone, the initiator in the guest and the servers and the line on this
              host: for an emulated guest, which is too slow for the line (root only)
  power-cuts  what reaches the disk is recorded in the guest, and the power is cut at --cuts places in
              the record, for each of two loads. GUEST_RUNNER names the program that runs a guest job
  fuzz        logins, PDUs, messages between processes, state files, the control socket and disks are
              fuzzed beside an honest session
  matrix      every combination of negotiated parameters, in random order, until all are tested.
              A run that the time ended goes on with the same --seed and --from
  outages     no network, no VPN or a firewall for up to 30 seconds, another address of the initiator, and its
              reboot, under a verified load of the kernel's initiator in the guest: times until it goes on
  pacemaker   the resource agent in a real cluster of one node, on a fresh Debian 12: start, a killed server,
              a LUN that executes no commands, the address leaves and returns, stop (root only; needs the
              network; some minutes)
  routes      targetd is installed on a fresh Debian 12 in each of the ways that the README describes (root
              only; needs the network the first time)
  takeovers   two servers for one disk and initiators with paths to both: the active server is killed,
              stopped, cut off or put into standby, and the other one takes over (root only, for loop
              devices)
  upgrades    targetdctl upgrade again and again while sessions write, verify and log in: none is lost
  write-back  each kind of durable command with 1, 3 and 8 sessions, in the guest, to disks that lose
              what is written back

The exit code is 0 if nothing was wrong. The figures are printed at the end.
"""

import argparse
import os
import shutil
import sys
import tempfile

# the tests' plain modules
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ceph_runs  # noqa: E402
import distance_line  # noqa: E402
import floods  # noqa: E402
import fuzz  # noqa: E402
import guest_runs  # noqa: E402
import kills  # noqa: E402
import matrix  # noqa: E402
import pacemaker  # noqa: E402
import routes  # noqa: E402
import takeovers  # noqa: E402
import upgrades  # noqa: E402

RUNS = {
    'ceph': ceph_runs.run_ceph,
    'distance': guest_runs.run_distance,
    'distance-line': distance_line.run_distance_line,
    'floods': floods.run_floods,
    'fuzz': fuzz.run_fuzz,
    'kills': kills.run_kills,
    'matrix': matrix.run_matrix,
    'outages': guest_runs.run_outages,
    'pacemaker': pacemaker.run_pacemaker,
    'routes': routes.run_routes,
    'power-cuts': guest_runs.run_power_cuts,
    'takeovers': takeovers.run_takeovers,
    'upgrades': upgrades.run_upgrades,
    'write-back': guest_runs.run_write_back,
}

GUEST_RUNS = ('distance', 'distance-line', 'outages', 'power-cuts', 'write-back')


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog='python -m tests.longrun',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('name', choices=sorted(RUNS))
    parser.add_argument(
        '--seconds', type=float, help='of the run (600), or the limit of a guest job (14400)'
    )
    parser.add_argument('--cuts', type=int, default=10000, help='of power-cuts')
    parser.add_argument(
        '--commands', type=int, default=2000, help='that each load of power-cuts sends'
    )
    parser.add_argument('--seed', type=int, default=None, help='default: a new one, printed')
    parser.add_argument(
        '--from',
        dest='start',
        type=int,
        default=0,
        metavar='N',
        help='of matrix: the first N combinations in the order of --seed were tested before',
    )
    parser.add_argument(
        '--dir', metavar='DIRECTORY', help='where the images go; default: that for temporary files'
    )
    options = parser.parse_args(arguments)
    if options.seconds is None:
        options.seconds = 14400 if options.name in GUEST_RUNS else 600
    return options


def main():
    options = parse()
    seed = int.from_bytes(os.urandom(3), 'big') if options.seed is None else options.seed
    more = {
        'power-cuts': {'cuts': options.cuts, 'commands': options.commands},
        'matrix': {'start': options.start},
    }.get(options.name, {})
    directory = tempfile.mkdtemp(prefix='targetd-longrun-', dir=options.dir)
    print('%s for %g seconds, seed %d, in %s' % (options.name, options.seconds, seed, directory))
    sys.stdout.flush()
    try:
        figures, complaints = RUNS[options.name](directory, options.seconds, seed, **more)
    except BaseException:
        print('the log is in %s' % directory)
        raise
    for name, value in sorted(figures.items()):
        print('%9d %s' % (value, name))
    for complaint in complaints[:20]:
        print('WRONG: %s' % complaint)
    if complaints:
        print('the log is in %s' % directory)
        return 1
    shutil.rmtree(directory)
    print('nothing is wrong')
    return 0


if __name__ == '__main__':
    sys.exit(main())
