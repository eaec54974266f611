# Behind fio-lib.sh and native-lib.sh: load with checksums on every queue of a disk, while another one
# comes and goes.
tools=$(disk 0)
data=$(disk 1)
tools "$tools"
cpus=$(nproc)
echo "@@ cpus $cpus"
echo "@@ queues $(ls "/sys/block/$data/mq" | wc -l)"

echo '2048,,L' | /sbin/sfdisk -q "/dev/$data" || fail sfdisk
/sbin/mke2fs -q -F -t ext4 "/dev/${data}1" || fail mke2fs
mkdir /mnt
mount -t ext4 "/dev/${data}1" /mnt || fail mount
mount --bind /mnt /tools/tmp || fail bind
# A job on each processor and so each queue, one request at a time, then many, reading
# back what they wrote while they write on; then as programs do it, through the cache.
fio --directory=/tmp --direct=1 --rw=randwrite --bsrange=512-64k --size=1m \
	--numjobs="$cpus" --cpus_allowed=0-$((cpus - 1)) --cpus_allowed_policy=split \
	--iodepth=1 --ioengine=libaio
fio --directory=/tmp --direct=1 --rw=randwrite --bsrange=4k-256k --size=4m \
	--numjobs="$cpus" --cpus_allowed=0-$((cpus - 1)) --cpus_allowed_policy=split \
	--iodepth=32 --verify_backlog=32 --ioengine=libaio
echo "@@ hot-add"
fio --directory=/tmp --direct=0 --rw=write --bsrange=4k-128k --size=4m --numjobs=2 \
	--ioengine=psync --fsync=16
hot=$(disk 9)
[ "$hot" ] || fail 'no hot-added disk'
echo "@@ hot $(sum "/dev/$hot")"
echo "@@ hot-remove"
fio --directory=/tmp --direct=1 --rw=randrw --bsrange=4k-64k --size=1m \
	--numjobs="$cpus" --iodepth=8 --ioengine=libaio
gone 9 || fail 'the removed disk is still there'
rm /mnt/job*
sync
echo "@@ trimmed $(fstrim -v /mnt 2>&1)"
umount /tools/tmp
umount /mnt || fail umount
/sbin/blkdiscard -f "/dev/$data" || fail blkdiscard

echo "@@ log begin"
dmesg -r | grep '^<[0-4]>'
echo "@@ log end"
echo "@@ end"
reboot -f
sleep 60
