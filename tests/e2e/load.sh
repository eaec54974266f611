# Behind fio-lib.sh; typed at a Debian guest's console: sh /dev/xvdb. Lines that begin
# with @@ are read by the test. The disks: the system, this script, programs, data to
# copy, an empty file system.
fail() {
	echo "@@ failed $*"
}

# Behind what the shell did to the terminal.
echo
echo "@@ state $(systemctl is-system-running --wait)"
tools xvdc
mkdir /root/load /copy
mount --bind /root/load /tools/tmp || fail bind
# On the root file system: every pair of one and four jobs with one and 32 requests at
# once, sizes mixed; what was written is read back, the last time while they write on.
for jobs in 1 4; do
	for depth in 1 32; do
		fio --directory=/tmp --direct=1 --rw=randwrite --bsrange=512-256k --size=4m \
			--numjobs=$jobs --iodepth=$depth --ioengine=libaio
	done
done
fio --directory=/tmp --direct=1 --rw=randrw --bsrange=4k-1m --size=8m --numjobs=4 \
	--iodepth=16 --verify_backlog=16 --ioengine=libaio
umount /tools/tmp
rm -r /root/load
echo "@@ trimmed $(fstrim -v / 2>&1)"

mount -t ext4 /dev/xvde /copy || fail 'mount xvde'
began=$(date +%s)
dd if=/dev/xvdd of=/copy/data bs=1M conv=fsync 2>/dev/null || fail copy
copied=$(date +%s)
echo 3 >/proc/sys/vm/drop_caches
echo "@@ copy $(md5sum </copy/data | cut -d' ' -f1)"
echo "@@ seconds $((copied - began)) to copy, $(($(date +%s) - copied)) to read back"
umount /copy || fail 'umount xvde'
echo "@@ log begin"
dmesg -r | grep '^<[0-4]>'
echo "@@ log end"
systemctl poweroff
exit
