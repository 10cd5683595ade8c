# In the guest: a portal with "ipsec = required", and strongSwan on both hosts with the files of etc/ipsec. The kernel's initiator
# writes and compares, while the keys are given up, strongSwan of the client is stopped and started, and that of the server loses all
# its keys, as by a restart of the host. A third host has no key at first, then one that the server does not know, and at last a
# certificate, as a Windows host has.
set -e
. /job/common.sh
. /job/hosts.sh
any=iqn.2026-11.com.example:any disk=iqn.2026-11.com.example:disk plain=iqn.2026-11.com.example:plain
samples=/src/etc/ipsec
say "start"
install_packages
make_hosts
cp $samples/retransmit.conf /etc/strongswan.d/targetd.conf

make_key() { # name, folder: in swanctl's folder of a host, with the public key beside it
    (umask 077; openssl genpkey -algorithm ED25519 -out "$2/pkcs8/$1.key")
    openssl pkey -in "$2/pkcs8/$1.key" -pubout -out "$2/pubkey/$1.pem"
}

make_certificate() { # folder, name, address: of the authority /tmp/ca
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$2" -keyout "$1/pkcs8/$2-crt.key" -out /tmp/ca/csr
    echo "subjectAltName = IP:$3" > /tmp/ca/names
    openssl x509 -req -in /tmp/ca/csr -CA /tmp/ca/ca.crt -CAkey /tmp/ca/ca.key -CAcreateserial -extfile /tmp/ca/names -out "$1/x509/$2.crt"
    cp /tmp/ca/ca.crt "$1/x509ca"
} 2> /dev/null

make_ike_host() { # host: Debian's configuration, but for the socket and the log, which each host needs for itself
    swan=/tmp/ike/$1
    for each in conf.d pkcs8 pubkey private rsa ecdsa bliss pkcs12 x509 x509ca x509aa x509ac x509crl x509ocsp; do mkdir -p "$swan/$each"; done
    echo 'include conf.d/*.conf' > "$swan/swanctl.conf"
    { sed "s|include strongswan.d|include /etc/strongswan.d|" /etc/strongswan.conf
      printf 'charon {\n plugins {\n  vici {\n   socket = unix://%s/vici\n  }\n }\n' "$swan"
      printf ' filelog {\n  log {\n   path = %s/log\n   flush_line = yes\n  }\n }\n}\n' "$swan"; } > "$swan/strongswan.conf"
}

swanctl_on() { # host, arguments
    on "$1" env STRONGSWAN_CONF="/tmp/ike/$1/strongswan.conf" SWANCTL_DIR="/tmp/ike/$1" swanctl "${@:2}" --uri "unix:///tmp/ike/$1/vici"
}

start_ike() { # host
    # shellcheck disable=SC2016
    on "$1" env STRONGSWAN_CONF="/tmp/ike/$1/strongswan.conf" sh -c 'echo $$ > "$0/pid"; exec charon-systemd' "/tmp/ike/$1" > "/tmp/ike/$1/out" 2>&1 &
    for _ in $(seq 300); do swanctl_on "$1" --stats > /dev/null 2>&1 && break; sleep 0.1; done
    swanctl_on "$1" --load-all > "/tmp/ike/$1/loaded" || { cat "/tmp/ike/$1/loaded" "/tmp/ike/$1/log"; exit 1; }
    grep 'successfully loaded' "/tmp/ike/$1/loaded"
    if grep 'installing trap failed' "/tmp/ike/$1/log"; then exit 1; fi
}

child_keys() { swanctl_on client --list-sas | sed -n 's/^ *in *\([0-9a-f]*\),.*/\1/p'; } # SPIs of the client

packets() { tcpdump -n -r /tmp/outside "$1" 2> /dev/null | wc -l; } # filter

say "who has no keys gets no answer, on this portal"
start_server /job/targetd.conf
trap 'status=$?; [ $status = 0 ] || { tail -n 30 /tmp/ike/*/log /tmp/targetd.log; on server ip -s xfrm policy; }; exit $status' EXIT
begin_capture server eth0 /tmp/plain
attempts << END
here silent $SERVER 3260 $any
stranger silent $SERVER 3260 $any
stranger in $SERVER 3261 $plain
END
end_capture /tmp/plain
[ "$(names_in /tmp/plain)" -gt 0 ] # the capture finds names where they are

say "strongSwan on the server and on the client"
mkdir -p /tmp/ca
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '/CN=Example CA' -keyout /tmp/ca/ca.key -out /tmp/ca/ca.crt 2> /dev/null
for host in server client stranger; do
    make_ike_host $host
    make_key $host /tmp/ike/$host
done
cp /tmp/ike/client/pubkey/client.pem /tmp/ike/server/pubkey
for host in client stranger; do cp /tmp/ike/server/pubkey/server.pem /tmp/ike/$host/pubkey; done
make_certificate /tmp/ike/server server $SERVER
cp $samples/server.conf $samples/windows.conf /tmp/ike/server/conf.d
cp $samples/client.conf /tmp/ike/client/conf.d
on server nft -f $samples/guard.nft
nft -f $samples/guard.nft
start_ike server
begin_capture server eth0 /tmp/outside
start_ike client

say "the initiator logs in: its first packet has the keys negotiated"
start_iscsid
T=$SERVER:3260 discover
iscsiadm -m node -T $disk -p $SERVER:3260 --login
begin_load "$(iscsi_disk $disk 0)"
swanctl_on client --list-sas
swanctl_on client --list-sas | grep 'TRANSPORT, ESP'

say "a third host: without keys, with a key that the server does not know, and with a certificate of the authority"
echo "stranger silent $SERVER 3260 $any" | attempts
sed "s/192.0.2.7/$STRANGER/; s/client/stranger/g" $samples/client.conf > /tmp/ike/stranger/conf.d/targetd.conf
start_ike stranger
echo "stranger silent $SERVER 3260 $any" | attempts
grep 'received AUTHENTICATION_FAILED' /tmp/ike/stranger/log
make_certificate /tmp/ike/stranger windows $STRANGER
sed "s/192.0.2.7/$STRANGER/; /pubkeys/d; s/id = client/id = $STRANGER\ncerts = windows.crt/; s/id = server/id = $SERVER\ncacerts = ca.crt/
    s/version = 2/&\nproposals = aes256-sha256-modp2048/; s/aes128gcm16,aes256gcm16/aes256-sha256/" $samples/client.conf > /tmp/ike/stranger/conf.d/targetd.conf
swanctl_on stranger --load-all | grep 'successfully loaded'
on stranger ip xfrm state flush # of the negotiation that has failed, which the kernel repeats after 30 seconds only
echo "stranger in $SERVER 3260 $any" | attempts
sed -i 's/version = 2/version = 1/' /tmp/ike/stranger/conf.d/targetd.conf
swanctl_on stranger --terminate --ike targetd > /dev/null
swanctl_on stranger --load-all | grep 'successfully loaded'
echo "stranger in $SERVER 3260 $any" | attempts
swanctl_on stranger --list-sas | grep 'IKEv1'
stop_process /tmp/ike/stranger/pid

say "the keys are given up: new ones are negotiated, the same session goes on"
before=$(child_keys)
swanctl_on client --terminate --ike targetd > /dev/null
goes_on
[ -n "$before" ] && [ "$(child_keys)" != "$before" ]
[ "$(logins $disk)" = 1 ]

say "strongSwan of the client is away for five seconds: nothing arrives, nothing leaves in plain"
stop_process /tmp/ike/client/pid
before=$(rounds)
sleep 5
[ "$(rounds)" -le $((before + 1)) ]
start_ike client
goes_on

say "the server has lost all its keys without a word, as by a restart: the client notices, and negotiates new ones"
kill -KILL "$(cat /tmp/ike/server/pid)"
on server ip xfrm state flush
on server ip xfrm policy flush
start_ike server
goes_on

end_load
end_capture /tmp/outside
esp=$(packets esp) plain=$(packets "tcp port 3260 and not src host $STRANGER")
echo "$esp packets with ESP, $plain plain ones of the port, $(names_in /tmp/outside) names; $(logins $disk) logins"
[ "$esp" -gt 500 ]
[ "$(stat -c %s /tmp/outside)" -gt 1000000 ]
[ "$plain" = 0 ]
[ "$(packets "tcp port 3260 and src host $STRANGER")" -gt 0 ] # who had no keys, and got no answer
[ "$(names_in /tmp/outside)" = 0 ]
iscsiadm -m node -T $disk -p $SERVER:3260 --logout
stop_targetd
