# Behind first.sh and fio-lib.sh, the first process of the disk tests' small guests: disks as Xen's
# frontend shows them.
# pontoon_test= chooses what happens; lines that begin with @@ are read by the test.
mkdir /mnt

# Waits until the command succeeds.
until_ok() {
	for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		"$@" 2>/dev/null && return 0
		sleep 1
	done
	fail "in vain: $*; there are $(echo /sys/block/xvd* /sys/bus/xen/devices/vbd*)"
	return 1
}

# As [ ! -e ].
gone() {
	! [ -e "$1" ]
}

# Has each processor hear of some of the disks' queues, as irqbalance would: 5.10 leaves them all to the
# first, and their requests go by its channel.
spread() {
	cpu=0
	grep blkif /proc/interrupts | while IFS=': ' read -r irq _; do
		echo $((cpu % $(nproc))) >"/proc/irq/$irq/smp_affinity_list" || fail "irq $irq"
		cpu=$((cpu + 1))
	done
}

sum() {
	md5sum | cut -d' ' -f1
}

# BLOCKS blocks of 4096 bytes from block AT of a disk, around the page cache.
blocks() {
	dd if="/dev/$1" bs=4096 skip="$2" count="$3" iflag=direct 2>/tmp/said
}

# 256 KiB from there on, by one request.
large() {
	dd if="/dev/$1" bs=256k skip="$2" count=1 iflag=direct 2>/tmp/said
}

# Writes files on the first disk, one after the other, while a test goes on.
bystander() {
	mount -t ext4 /dev/xvda /mnt || fail 'mount xvda'
	(
		n=0
		while [ ! -e /tmp/stop ]; do
			dd if=/dev/urandom of=/mnt/file$((n % 4)) bs=64k count=4 conv=fsync 2>/dev/null || echo "@@ failed bystander"
			n=$((n + 1))
		done
		echo $n >/tmp/rounds
	) &
}

bystander_ends() {
	touch /tmp/stop
	wait
	echo "@@ bystander $(cat /tmp/rounds)"
	before=$(cat /mnt/file* | sum)
	umount /mnt || fail 'umount xvda'
	echo 3 >/proc/sys/vm/drop_caches
	mount -t ext4 /dev/xvda /mnt || fail 'second mount of xvda'
	[ "$before" = "$(cat /mnt/file* | sum)" ] || fail "the bystander's data differ"
	umount /mnt
}

until_ok [ -b /dev/xvda ]
case $test in
fio)
	until_ok [ -b /dev/xvdc ]
	tools xvda
	echo "@@ sectors $(cat /sys/block/xvdb/queue/logical_block_size) $(cat /sys/block/xvdc/queue/logical_block_size)"
	# One request at a time; many of all sizes; four jobs at once, reading back what
	# they wrote while they write on; through the page cache.
	# io_uring asks Linux not to wait. 5.10 says EAGAIN to the program, natively as well, where a
	# request has been cut and there is no room for its rest (docs/testing.md).
	cut=io_uring
	case $(uname -r) in 5.*) cut=libaio && spread ;; esac
	fio --filename=/dev/xvdb --direct=1 --rw=randwrite --bsrange=512-64k --size=2m --iodepth=1 --ioengine=io_uring
	fio --filename=/dev/xvdb --direct=1 --rw=randwrite --bsrange=512-1m --size=32m --iodepth=32 --ioengine=libaio
	fio --filename=/dev/xvdb --direct=1 --rw=randwrite --bsrange=4k-256k --size=8m --numjobs=4 --offset_increment=16m --iodepth=8 --verify_backlog=32 --ioengine="$cut"
	fio --filename=/dev/xvdc --direct=1 --rw=randwrite --bsrange=4k-1m --size=16m --iodepth=16 --ioengine="$cut"
	fio --filename=/dev/xvdc --rw=write --bsrange=4k-128k --size=16m --direct=0 --ioengine=psync --fsync=16
	;;
faults)
	# See faults() in tests/disks/small.rs for what happens where.
	until_ok [ -b /dev/xvdb ]
	bystander
	blocks xvdb 256 1 >/dev/null && fail 'read a bad sector'
	grep -q 'Input/output error' /tmp/said || fail "reading: $(cat /tmp/said)"
	[ "$(blocks xvdb 255 1 | sum)" = "$(blocks xvdb 257 1 | sum)" ] || fail 'neighbours'
	dd if=/dev/urandom of=/dev/xvdb bs=4096 seek=512 count=1 oflag=direct 2>/tmp/said && fail 'wrote a bad sector'
	grep -q 'Input/output error' /tmp/said || fail "writing: $(cat /tmp/said)"
	# Bad in the middle of a large request; the second time all is well.
	large xvdb 12 >/dev/null && fail 'read over a bad sector'
	echo "@@ again $(large xvdb 12 | sum)"
	# Through the page cache, and told by fsync.
	dd if=/dev/urandom of=/dev/xvdb bs=4096 seek=520 count=8 conv=fsync 2>/dev/null && fail 'fsync hid an error'
	before=$(cut -d. -f1 /proc/uptime)
	echo "@@ late $(blocks xvdb 1024 8 | sum)"
	echo "@@ took $(($(cut -d. -f1 /proc/uptime) - before))"
	# Half of it is called success: either an error or the right data.
	if large xvdb 20 >/tmp/short; then
		echo "@@ short $(sum </tmp/short)"
	else
		echo '@@ short error'
	fi
	dd if=/dev/urandom of=/tmp/data bs=256k count=1 2>/dev/null
	if dd if=/tmp/data of=/dev/xvdb bs=256k seek=24 count=1 oflag=direct 2>/dev/null; then
		[ "$(sum </tmp/data)" = "$(large xvdb 24 | sum)" ] || fail 'a short write was called good'
		echo '@@ short-write good'
	else
		echo '@@ short-write error'
	fi
	bystander_ends
	;;
plug)
	bystander
	gone /dev/xvdb || fail 'xvdb is there already'
	echo '@@ attach'
	until_ok [ -b /dev/xvdb ]
	echo "@@ size $(cat /sys/block/xvdb/size)"
	echo "@@ data $(blocks xvdb 0 64 | sum)"
	# In use, by reads and writes of several processes, when it goes. (A dd that came
	# too late would make a file of that name.)
	for place in 1 2 3; do
		(
			/diskwork raw /dev/xvdb 0 "$place" >/tmp/wrote$place 2>/dev/null &
			while blocks xvdb 0 64 >/dev/null; do :; done
			wait
			echo "@@ user $(wc -l </tmp/wrote$place)"
		) &
		users="$users $!"
	done
	sleep 2
	echo '@@ remove'
	for user in $users; do
		wait $user
	done
	until_ok gone /dev/xvdb
	echo '@@ attach-again'
	until_ok [ -b /dev/xvdb ]
	echo "@@ data-again $(blocks xvdb 0 64 | sum)"
	# With a file system on it, mounted, when it goes.
	mkdir /plugged
	mke2fs /dev/xvdb >/dev/null || fail mke2fs
	mount -t ext4 /dev/xvdb /plugged || fail 'mount xvdb'
	echo text >/plugged/file
	sync
	echo '@@ remove-mounted'
	until_ok sh -c '! dd if=/dev/zero of=/plugged/more bs=4096 count=1 conv=fsync'
	umount /plugged || fail 'umount xvdb'
	until_ok gone /sys/block/xvdb
	bystander_ends
	;;
cut:*)
	until_ok [ -b /dev/xvdb ]
	mount -t ext4 /dev/xvda /mnt || fail 'mount xvda'
	numbers=${test#cut:}
	/diskwork files /mnt "${numbers%:*}" &
	/diskwork raw /dev/xvdb "${numbers#*:}" 0 &
	wait
	fail 'the power is still on'
	;;
*) fail "unknown test $test" ;;
esac
echo '@@ log begin'
dmesg -r | grep '^<[0-4]>'
echo '@@ log end'
echo '@@ end'
sync
poweroff -f
sleep 60
