# Behind first.sh, in front of the native disk tests: disks by their places.

# The disk at a LUN, once it is there; the two controllers have different LUNs.
disk() {
	for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		name=$(ls -d /sys/bus/scsi/devices/*:0:0:"$1"/block/* 2>/dev/null | sed 's#.*/##')
		if [ -b "/dev/$name" ] && [ "$name" ]; then
			echo "$name"
			return
		fi
		sleep 1
	done
}

gone() {
	for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		ls -d /sys/bus/scsi/devices/*:0:0:"$1" >/dev/null 2>&1 || return 0
		sleep 1
	done
	return 1
}

sum() {
	md5sum "$@" | cut -d' ' -f1
}
