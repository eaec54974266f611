# Behind native-lib.sh: everything a disk does, as the kernel's own drivers see it.
main=$(disk 0)
large=$(disk 1)
fixed=$(disk 2)
dvd=$(disk 3)
echo "@@ disks $main $large $fixed $dvd"
echo "@@ vendor $(cat "/sys/block/$main/device/vendor")"
echo "@@ sizes $(cat "/sys/block/$main/size") $(cat "/sys/block/$large/queue/logical_block_size") $(cat "/sys/block/$dvd/queue/logical_block_size") $(cat "/sys/block/$fixed/ro")"
echo "@@ queues $(ls "/sys/block/$main/mq" | wc -l) cache $(cat "/sys/block/$main/queue/write_cache")"
echo "@@ discard $(cat "/sys/block/$main/queue/discard_max_bytes")"

# A file system on a partition, read back by a kernel that has forgotten it.
echo '2048,,L' | /sbin/sfdisk -q "/dev/$main" || fail sfdisk
/sbin/mke2fs -q -F -t ext4 "/dev/${main}1" || fail mke2fs
mkdir /mnt
mount -t ext4 "/dev/${main}1" /mnt || fail mount
dd if=/dev/urandom of=/mnt/a bs=1M count=8 2>/dev/null
dd if=/dev/urandom of=/mnt/b bs=700 count=999 2>/dev/null
# Both processors at once, each with its own channel.
(dd if=/dev/urandom of=/mnt/c bs=4k count=512 2>/dev/null) &
dd if=/dev/urandom of=/mnt/d bs=4k count=512 conv=fsync 2>/dev/null
wait
before=$(cat /mnt/a /mnt/b /mnt/c /mnt/d | md5sum)
sync
umount /mnt || fail umount
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 "/dev/${main}1" /mnt || fail 'second mount'
[ "$before" = "$(cat /mnt/a /mnt/b /mnt/c /mnt/d | md5sum)" ] || fail 'data differs'
rm /mnt/a
sync
fstrim /mnt || fail fstrim
umount /mnt || fail umount

# Whole disks: sectors of 4096 bytes, what the test will find in the file, holes.
dd if=/pattern of="/dev/$large" bs=4096 seek=16 oflag=direct 2>/dev/null || fail 'write large'
/sbin/blkdiscard -o 1048576 -l 1048576 "/dev/$large" || fail blkdiscard
[ "$(dd if="/dev/$large" bs=1M skip=1 count=1 2>/dev/null | sum)" = "$(dd if=/dev/zero bs=1M count=1 2>/dev/null | sum)" ] || fail 'holes are not zero'
/sbin/blkdiscard -z -o 2097152 -l 1048576 "/dev/$large" || fail 'write zeroes'
dd if=/pattern of="/dev/$fixed" bs=4096 count=1 oflag=direct 2>/dev/null && fail 'wrote a read-only disk'
echo "@@ fixed $(sum "/dev/$fixed")"
echo "@@ dvd $(sum "/dev/$dvd")"

echo "@@ hot-add"
hot=$(disk 9)
[ "$hot" ] || fail 'no hot-added disk'
echo "@@ hot $(sum "/dev/$hot")"
echo "@@ hot-remove"
gone 9 || fail 'the removed disk is still there'

echo "@@ controller-remove"
gone 5 || fail 'the removed controller is still there'
echo "@@ controller-add"
second=$(disk 5)
[ "$second" ] || fail 'the controller did not come back'
echo "@@ second $(sum "/dev/$second")"

echo "@@ log begin"
dmesg -r | grep '^<[0-4]>'
echo "@@ log end"
sync
echo "@@ end"
reboot -f
sleep 60
