# In the guest: fail2ban with the files of etc/fail2ban, and nftables, on the server's host. A host that guesses secrets is
# rejected by the kernel, another one is not, and after the end of the ban the first one logs in.
set -e
. /job/common.sh
. /job/hosts.sh
any=iqn.2026-11.com.example:any
say "start"
install_packages
make_hosts
start_server /job/targetd.conf
rm -f /etc/fail2ban/jail.d/defaults-debian.conf # sshd, which is not here
cp /src/etc/fail2ban/filter.d/targetd.conf /etc/fail2ban/filter.d
sed 's|/var/log/targetd.log|/tmp/targetd.log|' /src/etc/fail2ban/jail.d/targetd.conf > /etc/fail2ban/jail.d/targetd.conf
mkdir -p /run/fail2ban /var/lib/fail2ban
on server fail2ban-server -f --logtarget /tmp/fail2ban.log start > /tmp/fail2ban.out 2>&1 &
trap 'status=$?; [ $status = 0 ] || tail -n 30 /tmp/fail2ban.out /tmp/fail2ban.log /tmp/targetd.log; exit $status' EXIT
is_within() { # seconds, command
    for _ in $(seq $(($1 * 5))); do "${@:2}" && return 0; sleep 0.2; done
    echo "not within $1 s: ${*:2}"; return 1
}
has_started() { grep -qs "Jail 'targetd' started" /tmp/fail2ban.log; }
banned() { on server nft list ruleset | grep -o 'elements = {.*}'; }
is_banned() { banned | grep -q "$STRANGER"; }
is_free() { ! is_banned; }
is_within 120 has_started

say "nine wrong secrets: no ban"
wrong="stranger failed $SERVER 3260 $any erp wrong-secret-of"
for _ in $(seq 9); do echo "$wrong"; done | attempts
sleep 5 # fail2ban reads the log every second
is_free
attempts << END
here in $SERVER 3260 $any erp 12-to-16-chars
stranger in $SERVER 3260 $any erp 12-to-16-chars
END

say "the tenth: the address is rejected, another one logs in"
echo "$wrong" | attempts
is_within 60 is_banned
on server nft list ruleset
banned | grep -c '192.0.2' | grep -x 1
attempts << END
here in $SERVER 3260 $any erp 12-to-16-chars
stranger refused $SERVER 3260 $any erp 12-to-16-chars
END
on stranger ping -q -c 1 -W 5 $SERVER > /dev/null # the port only

say "the end of the ban"
on server fail2ban-client set targetd unbanip $STRANGER
is_within 30 is_free
echo "stranger in $SERVER 3260 $any erp 12-to-16-chars" | attempts
on server fail2ban-client stop
stop_targetd
