#!/bin/sh
# First process of dom0 under real Xen: starts Xen's toolstack, runs the one domain
# that /domu/config describes with its console on the first serial port, and ends the
# machine with it. What it says itself goes to Xen's console; the harness
# (tests/src/domu.rs) reads what begins with @@ and what stands between two of those.
export PATH=/usr/lib/xen-4.17/bin:/usr/bin:/sbin:/bin
export LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/lib/x86_64-linux-gnu
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
# Xen's hotplug scripts look at what they have open.
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
mkdir -p /dev/pts /run/xen /run/xenstored /var/log/xen /var/lib/xen /var/lock
ln -s /run /var/run
mount -t devpts devpts /dev/pts
while read -r module; do
	insmod "/modules/$module" || echo "@@ no-module $module"
done </modules/list
mount -t xenfs xenfs /proc/xen
log=/var/log/xen/xl-guest.log

# The name of a section and a command whose output it is.
section() {
	name=$1
	shift
	echo "@@ $name begin"
	"$@"
	echo "@@ $name end"
}

finish() {
	echo "@@ end"
	poweroff -f
	sleep 60
}

failed() {
	section words tail -n 20 /run/create.log /run/console.log /var/log/xen/*
	echo "@@ failed $*"
	finish
}

# Whether all disks of the domain have their backends.
connected() {
	for device in $(xenstore-list "/local/domain/$id/device/vbd" 2>/dev/null); do
		state=$(xenstore-read "/local/domain/$id/device/vbd/$device/state" 2>/dev/null)
		[ "$state" = 4 ] || return 1
	done
}

xenstored --pid-file /run/xenstored.pid || failed xenstored
xen-init-dom0 >/dev/null || failed xen-init-dom0
xenconsoled --pid-file=/run/xenconsoled.pid || failed xenconsoled
# The domain waits until its console is read.
xl create -p /domu/config >/run/create.log 2>&1 || failed xl create
id=$(xl domid guest) || failed xl domid
stty -F /dev/ttyS0 raw -echo
xenconsole "$id" --type pv --num 0 </dev/ttyS0 >/dev/ttyS0 2>/run/console.log &
console=$!
xl unpause "$id" || failed xl unpause
echo "@@ created $id"

# The store as the domain's drivers and the backends have left it.
until connected; do
	kill -0 $console 2>/dev/null || break
	sleep 1
done
sleep 5
section store xenstore-ls -fp
section info xl info

wait $console
# xl's monitor hears of the domain's end, too, takes its devices away and says so.
tries=0
until grep -q 'Done. Exiting now' $log; do
	tries=$((tries + 1))
	[ $tries -lt 60 ] || failed "the domain does not go"
	sleep 1
done
sed -n 's/.*has shut down, reason code \([0-9]*\).*/@@ reason \1/p' $log
finish
