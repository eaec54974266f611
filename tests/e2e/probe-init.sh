#!/bin/sh
# First process of the guest that is asked what its hypervisor tells it, under real Xen
# and under the shim. Sections are as in dom0-init.sh.
export LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/lib/x86_64-linux-gnu
export PATH=/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
while read -r module; do
	insmod "/modules/$module"
done </modules/list
mount -t xenfs xenfs /proc/xen
# The console is a terminal and wraps no lines, but what the kernel says comes between.
dmesg -n 1

section() {
	name=$1
	shift
	echo "@@ $name begin"
	"$@" 2>&1
	echo "@@ $name end"
}

# What a domain may read of the store: its own nodes, and what those name.
store() {
	xenstore-ls -fp "/local/domain/$id"
	xenstore-ls -fp "$(xenstore-read vm)"
	for device in $(xenstore-list device/vbd 2>/dev/null); do
		xenstore-ls -fp "$(xenstore-read "device/vbd/$device/backend")"
	done
	xenstore-ls -fp "$(xenstore-read console/backend)"
}

# What it may not.
refused() {
	for path in / /local /local/domain /local/domain/0 /tool /vm /libxl "/libxl/$id"; do
		echo "$path: $(xenstore-ls -f "$path" 2>&1 | head -n 1)"
	done
}

version() {
	grep -r . /sys/hypervisor
	ls /proc/xen /dev/xen
	echo "capabilities: $(cat /proc/xen/capabilities)"
}

blkfront() {
	for node in /sys/block/xvd*/queue/*; do
		echo "$node $(cat "$node" 2>/dev/null)"
	done
}

id=$(xenstore-read domid)
section store store
section refused refused
section version version
section cpuid /cpuid
section flags grep -m 1 ^flags /proc/cpuinfo
section blkfront blkfront
section log dmesg -r
# Until dom0 has looked, too.
sleep "$(cat /seconds)"
poweroff -f
sleep 60
