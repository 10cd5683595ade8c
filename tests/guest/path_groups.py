"""In the guest: the path groups of a multipath device, as multipathd has them, the best one first.

path_groups.py NAME

prints the priority of each group and the states of its paths, in the kernel and by the last test, or "none",
for example: 50[active ready, active ready] 1[active ghost]
"""

import json
import subprocess
import sys


def main(name):
    maps = json.loads(subprocess.check_output(['multipathd', 'show', 'maps', 'json']).decode())
    for device in maps['maps']:
        if device['name'] == name:
            groups = [
                (group['pri'], sorted('%(dm_st)s %(chk_st)s' % path for path in group['paths']))
                for group in device['path_groups']
            ]
            print(
                ' '.join('%d[%s]' % (pri, ', '.join(paths)) for pri, paths in sorted(groups)[::-1])
            )
            return
    print('none')


main(*sys.argv[1:])
