# Behind first.sh, the first process of the tests of IDE's disks: writes to every disk that can be
# written, and says what all of them are. On the command line: pontoon_disks= how many there are.

n=0
while [ "$(ls -d /sys/block/sd* /sys/block/xvd* 2>/dev/null | wc -l)" -lt "$disks" ]; do
	n=$((n + 1))
	if [ $n -gt 300 ]; then
		echo "@@ failed to find $disks disks"
		break
	fi
	usleep 100000
done
for disk in /sys/block/sd* /sys/block/xvd*; do
	[ -e "$disk" ] || continue
	name=${disk##*/}
	if [ "$(cat "$disk/ro")" = 0 ]; then
		dd if=/dev/urandom of="/dev/$name" bs=4096 count=32 seek=5 oflag=direct 2>/dev/null || echo "@@ failed to write $name"
	fi
	sync
	echo 3 >/proc/sys/vm/drop_caches
	sum=$(md5sum <"/dev/$name")
	echo "@@ disk-$name $(cat "$disk/size") $(cat "$disk/ro") ${sum%% *} $(readlink -f "$disk/device")"
done
echo "@@ log begin"
dmesg -r | grep '^<[0-4]>'
echo "@@ log end"
echo "@@ end"
sync
poweroff -f
sleep 60
