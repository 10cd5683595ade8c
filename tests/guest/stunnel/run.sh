# In the guest: stunnel on both hosts with the files of etc/stunnel. The kernel's initiator writes and compares through the tunnel, while
# the line is cut, and while stunnel of the server, and then that of the client, is stopped and started.
set -e
. /job/common.sh
. /job/hosts.sh
any=iqn.2026-11.com.example:any disk=iqn.2026-11.com.example:disk
say "start"
install_packages
make_hosts
useradd --system stunnel4
start_server /job/targetd.conf

make_key() { # host: its key, and the sample of its side
    mkdir -p "/tmp/$1"
    chown stunnel4 "/tmp/$1"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" -keyout "/tmp/$1/targetd.key" -out "/tmp/$1/targetd.crt" 2> /dev/null
    sample=client
    [ "$1" = server ] && sample=server
    { echo "output = /tmp/$1/log"
      sed "s|/etc/stunnel/|/tmp/$1/|; s|/run/stunnel4/|/tmp/$1/|" /src/etc/stunnel/$sample.conf; } > "/tmp/$1/stunnel.conf"
}
start_stunnel() { # host
    on "$1" stunnel "/tmp/$1/stunnel.conf" || { cat "/tmp/$1/log"; exit 1; }
}
stands_still() { # for five seconds
    before=$(rounds)
    sleep 5
    [ "$(rounds)" -le $((before + 1)) ]
}
for host in server client stranger; do make_key $host; done
cp /tmp/client/targetd.crt /tmp/server/clients.crt
for host in client stranger; do cp /tmp/server/targetd.crt /tmp/$host/server.crt; done
for host in server client stranger; do start_stunnel $host; done

say "who has no TLS gets no connection"
attempts << END
stranger failed $SERVER 3261 $any
stranger refused $SERVER 3260 $any
END

say "the initiator logs in through the tunnel, and is seen with its own address"
begin_capture server eth0 /tmp/outside
begin_capture server lo /tmp/within
start_iscsid
discover
login $disk
grep "guest:initiator.* from $CLIENT.* logged in to $disk" /tmp/targetd.log
begin_load "$(iscsi_disk $disk 0)"

say "who has no key of the server's list gets no connection"
attempts << END
here in 127.0.0.1 3260 $any
stranger refused 127.0.0.1 3260 $any
END

say "the line is cut for five seconds: the same session goes on"
ip link set to-server down
stands_still
ip link set to-server up
goes_on
[ "$(logins $disk)" = 1 ]

say "stunnel of the server, and then that of the client, is away for five seconds: a new login, and no error"
stop_process /tmp/server/targetd.pid
stands_still
start_stunnel server
goes_on
stop_process /tmp/client/targetd.pid
stands_still
start_stunnel client
goes_on
echo "$(logins $disk) logins"

end_load
end_capture /tmp/outside
end_capture /tmp/within
has_no_names /tmp/outside /tmp/within
logout $disk
stop_targetd
