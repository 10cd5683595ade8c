# In the guest: a line of 1 Mbit/s (netem) that reads of 1 MiB saturate. Pings do not wait for the data, neither in a session with one
# connection nor in one that may have several.
set -e
. /job/common.sh
. /job/hosts.sh
. /job/path.sh
say "start"
make_path
shape rate 1mbit
start_server /job/targetd.conf
wait_tcp $SERVER 3260 60
for keys in "" MaxConnections=2; do
    say "pings: ${keys:-one connection}"
    # shellcheck disable=SC2086
    python3 /job/slow.py iqn.2026-11.com.example:slow $keys
done
stop_targetd
