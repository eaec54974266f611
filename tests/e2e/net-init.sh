# Behind first.sh, the first process of the network tests. Lines that begin with @@ are read by the test.
# On the command line: pontoon_test= which, pontoon_net= the third byte of the IPv4 network,
# pontoon_port= the peer's port, pontoon_vlan= a VLAN there is.
here4=198.18.$net.2 there4=198.18.$net.1
here6=fd5a:ce00:$net::2 there6=fd5a:ce00:$net::1

# Does it, and says what came of it.
try() {
	name=$1
	shift
	if said=$("$@" 2>&1); then
		echo "@@ $name $(echo "$said" | tail -n 1)"
	else
		echo "@@ failed $name: $said"
	fi
}

# Waits up to 60 s.
wait_for() {
	n=0
	while ! eval "$*" 2>/dev/null; do
		n=$((n + 1))
		if [ $n -gt 600 ]; then
			echo "@@ failed to wait for: $*"
			return 1
		fi
		usleep 100000
	done
}

addresses() {
	echo 0 >"/proc/sys/net/ipv6/conf/$1/accept_dad"
	ip link set "$1" up
	ip addr add "$2/24" dev "$1"
	ip addr add "$3/64" dev "$1"
}

pinged() {
	ping -q -A -w "${4:-60}" -c "$2" -s "$3" "$1" | grep -q " $2 packets received"
}

# Both directions, both protocols, both versions of IP; bytes of a connection.
exchange() {
	for there in "$there4" "[$there6]"; do
		for direction in down up; do
			try "$1-tcp-$direction" traffic tcp "$there:$port" "$direction" "$2" 1
			try "$1-tcp-$direction-8" traffic tcp "$there:$port" "$direction" "$(($2 / 4))" 8
		done
		try "$1-udp" traffic udp "$there:$port" 200 "$3"
	done
}

features() {
	ethtool -k "$1" | tr -d '\t' | grep -E '^(tx-checksum-ip|rx-checksumming|tx-tcp-seg|tx-tcp6-seg|rx-vlan-offload|tx-vlan-offload|receive-hashing)' |
		sed 's/ *\[.*//; s/: */=/' | tr '\n' ' '
}

tagged() {
	ip link add link eth0 name eth0.$vlan type vlan id $vlan
	addresses eth0.$vlan 198.19.$net.2 fd5a:ce01:$net::2
	wait_for "pinged 198.19.$net.1 1 56"
	try vlan-ping pinged 198.19.$net.1 50 1400
	try vlan-tcp-down traffic tcp 198.19.$net.1:$port down 1000000 2
	try vlan-tcp-up traffic tcp "[fd5a:ce01:$net::1]:$port" up 1000000 2
}

test_vlan() {
	wait_for '[ -d /sys/class/net/eth0 ]'
	addresses eth0 "$here4" "$here6"
	wait_for 'pinged "$there4" 1 56'
	tagged
	exchange beside 1000000 1472
}

test_whole() {
	wait_for '[ -d /sys/class/net/eth0 ]'
	echo "@@ mac $(cat /sys/class/net/eth0/address)"
	addresses eth0 "$here4" "$here6"
	echo "@@ features $(features eth0)"
	echo "@@ speed $(cat /sys/class/net/eth0/speed)"
	try ping pinged "$there4" 100 56
	try ping6 pinged "$there6" 100 1400
	exchange plain 2000000 1472
	# Datagrams in fragments.
	try fragments traffic udp "$there4:$port" 50 8000

	# The peer's packets get larger, too.
	echo '@@ peer-mtu 9000'
	ip link set eth0 mtu 9000 || echo '@@ failed mtu 9000'
	echo "@@ mtu $(cat /sys/class/net/eth0/mtu)"
	wait_for 'pinged "$there4" 1 56'
	try ping-jumbo pinged "$there4" 20 8972
	exchange jumbo 2000000 8900
	echo '@@ peer-mtu 1500'
	ip link set eth0 mtu 1500
	sleep 2

	[ "$vlan" ] && tagged

	ethtool -K eth0 tx off tso off rx off >/dev/null || echo '@@ failed ethtool -K'
	exchange none 500000 1472
	ethtool -K eth0 tx on tso on rx on >/dev/null

	# Which is done to interfaces that are down.
	ip link set eth0 down
	ip link set eth0 address 00:15:5d:77:77:77 || echo '@@ failed address'
	addresses eth0 "$here4" "$here6" 2>/dev/null
	wait_for 'pinged "$there4" 1 56'
	try other-mac pinged "$there4" 10 56

	echo '@@ link-down'
	wait_for '[ "$(cat /sys/class/net/eth0/carrier)" = 0 ]'
	echo '@@ link-up'
	wait_for '[ "$(cat /sys/class/net/eth0/carrier)" = 1 ]'
	wait_for 'pinged "$there4" 1 56'
	try relinked traffic tcp "$there4:$port" up 100000 1

	echo '@@ attach'
	wait_for '[ -d /sys/class/net/eth1 ]'
	wait_for 'ip link set eth1 up 2>/dev/null'
	echo "@@ second $(cat /sys/class/net/eth1/address)"
	wait_for 'ip -6 addr show dev eth1 | grep -q fe80'
	echo '@@ remove'
	wait_for '[ ! -d /sys/class/net/eth1 ]'

	# The adapter goes and comes again while it is used.
	traffic tcp "$there4:$port" down 400000000 1 2>/dev/null &
	traffic=$!
	sleep 1
	echo '@@ reoffer'
	wait_for '! ip addr show dev eth0 2>/dev/null | grep -q "$here4"'
	wait_for '[ -d /sys/class/net/eth0 ]'
	kill $traffic
	addresses eth0 "$here4" "$here6"
	wait_for 'pinged "$there4" 1 56'
	exchange again 500000 1472
}

test_queues() {
	wait_for '[ -d /sys/class/net/eth0 ]'
	addresses eth0 "$here4" "$here6"
	wait_for '[ $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l) = $(nproc) ]'
	wait_for 'ethtool -l eth0 | tail -n 1 | grep -q "Combined:.*$(nproc)"'
	echo "@@ queues $(ethtool -l eth0 | tail -n 1 | tr -d -c 0-9)"
	on_all_queues
}

# The same under Xen's frontend, which does not tell ethtool.
test_xen_queues() {
	wait_for '[ -d /sys/class/net/eth0 ]'
	addresses eth0 "$here4" "$here6"
	echo "@@ queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
	on_all_queues
	echo "@@ interrupts $(awk '$NF ~ /^vif0-q[0-9]+-rx$/ && $2 + $3 + $4 + $5 > 20' /proc/interrupts | wc -l)"
}

# So many connections that each queue has some.
on_all_queues() {
	wait_for 'pinged "$there4" 1 56'
	for round in 1 2; do
		for direction in down up; do
			try "tcp-$direction-$round" traffic tcp "$there4:$port" $direction 100000 32
			try "tcp6-$direction-$round" traffic tcp "[$there6]:$port" $direction 100000 16
		done
	done
	try udp traffic udp "$there4:$port" 100 1472
}

# Under Xen's frontend: a card that comes and goes, and one whose channel does while it is used.
test_xen() {
	wait_for '[ -d /sys/class/net/eth0 ]'
	echo "@@ mac $(cat /sys/class/net/eth0/address)"
	addresses eth0 "$here4" "$here6"
	wait_for 'pinged "$there4" 1 56'
	try ping pinged "$there4" 100 56
	try ping6 pinged "$there6" 50 1400
	exchange plain 1000000 1472
	try fragments traffic udp "$there4:$port" 20 8000
	ethtool -K eth0 tx off tso off rx off >/dev/null || echo '@@ failed ethtool -K'
	exchange none 300000 1472
	ethtool -K eth0 tx on tso on rx on >/dev/null
	tagged

	echo '@@ peer-mtu 9000'
	ip link set eth0 mtu 9000 || echo '@@ failed mtu 9000'
	wait_for 'pinged "$there4" 1 56'
	try ping-jumbo pinged "$there4" 20 8972
	exchange jumbo 1000000 8900
	echo '@@ peer-mtu 1500'
	ip link set eth0 mtu 1500

	echo '@@ link-down'
	sleep 1
	echo '@@ link-up'
	wait_for 'pinged "$there4" 1 56'

	for round in 1 2; do
		echo "@@ attach-$round"
		wait_for '[ -d /sys/class/net/eth1 ]'
		wait_for 'ip link set eth1 up 2>/dev/null'
		echo "@@ second $(cat /sys/class/net/eth1/address)"
		wait_for 'ip -6 addr show dev eth1 | grep -q fe80'
		echo "@@ remove-$round"
		wait_for '[ ! -d /sys/class/net/eth1 ]'
	done

	# Both ways across it: the interface stays, and so do connections.
	traffic tcp "$there4:$port" down 6000000 2 >/tmp/down 2>&1 &
	down=$!
	traffic tcp "[$there6]:$port" up 6000000 2 >/tmp/up 2>&1 &
	up=$!
	sleep 1
	echo '@@ reoffer'
	if wait $down && wait $up; then
		echo '@@ reoffered'
	else
		echo "@@ failed across the reoffer: $(cat /tmp/down /tmp/up)"
	fi
	exchange again 300000 1472
}

# Much of it.
test_much() {
	wait_for '[ -d /sys/class/net/eth0 ]'
	addresses eth0 "$here4" "$here6"
	wait_for 'pinged "$there4" 1 56'
	# A port is free again when its connection has ended.
	echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse
	try pings pinged "$there4" 10000 56 1000
	for direction in down up; do
		began=$(cut -d. -f1 /proc/uptime)
		try "gibibyte-$direction" traffic tcp "$there4:$port" "$direction" 1073741824 1
		echo "@@ $direction-seconds $(($(cut -d. -f1 /proc/uptime) - began))"
	done
	try short traffic short "$there4:$port" 100000
}

# Disk and network at once, in a guest whose memory is less than what it is asked for.
test_pressure() {
	wait_for '[ -d /sys/class/net/eth0 ] && { [ -b /dev/xvdb ] || [ -b /dev/sdb ]; }'
	disk=/dev/xvd
	[ -b ${disk}b ] || disk=/dev/sd
	addresses eth0 "$here4" "$here6"
	wait_for 'pinged "$there4" 1 56'
	mkswap ${disk}b >/dev/null
	swapon ${disk}b || echo '@@ failed swapon'
	pressure hog $(($(grep MemTotal /proc/meminfo | tr -d -c 0-9) / 1024)) &
	hog=$!
	(while :; do dd if=${disk}a of=/dev/null bs=1M 2>/dev/null; done) &
	reader=$!
	wait_for '[ $(grep "^pswpout " /proc/vmstat | tr -d -c 0-9) -gt 1000 ]'
	pressure flows "$seconds" ${disk}a "$there4:$port" 2>&1 || echo '@@ failed flows'
	echo "@@ swapped $(grep '^pswpout ' /proc/vmstat | tr -d -c 0-9)"
	kill $hog $reader
	try after traffic tcp "$there4:$port" up 1000000 1
}

test_user() {
	wait_for '[ -d /sys/class/net/eth0 ]'
	ip link set eth0 up
	cat >/lease <<-'END'
		#!/bin/sh
		[ "$1" = bound ] || exit 0
		ip addr add "$ip/$mask" dev "$interface"
		ip route add default via "${router%% *}"
		echo "$ip ${router%% *}" >/leased
	END
	chmod +x /lease
	try dhcp udhcpc -i eth0 -n -q -t 10 -s /lease
	read -r address router </leased
	echo "@@ leased $address $router"
	echo "@@ features $(features eth0)"
	for direction in down up; do
		try "tcp-$direction" traffic tcp "$router:$port" $direction 4000000 1
		try "tcp-$direction-8" traffic tcp "$router:$port" $direction 500000 8
	done
	try udp traffic udp "$router:$port" 50 1400
	traffic serve 4000 &
	usleep 500000
	echo '@@ serving'
	# Until the test has had enough.
	read -r line </dev/console
}

"test_$test"
echo "@@ ethtool $(ethtool -S eth0 2>/dev/null | grep -E 'tx_too_big|tx_no_memory|rx_no_memory|rx_comp_busy' | tr -d ' ' | tr '\n' ' ')"
echo "@@ errors $(grep -E '^(Tcp|Udp|Ip):' /proc/net/snmp | tr '\n' ';')"
echo "@@ log begin"
dmesg -r | grep '^<[0-4]>'
echo "@@ log end"
echo "@@ end"
reboot -f
sleep 60
