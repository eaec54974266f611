#!/bin/sh
# In front of the first process of every small guest: mounts, drivers, and what the command line says,
# pontoon_NAME=VALUE as $NAME. Lines that begin with @@ are read by the tests.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
for module in $(cat /modules/list 2>/dev/null); do
	insmod "/modules/$module" || echo "@@ failed insmod $module"
done
for word in $(cat /proc/cmdline); do
	case $word in
	pontoon_*=*) export "${word#pontoon_}" ;;
	esac
done

fail() {
	echo "@@ failed $*"
}

