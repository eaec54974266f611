# Typed at a Debian guest's console: sh /dev/xvdb first|second|…; lines that begin
# with @@ are read by the test.
data=/root/data
# Behind what the shell did to the terminal.
echo
case $1 in
first)
	echo "@@ state $(systemctl is-system-running --wait)"
	echo "@@ units $(systemctl --failed --no-legend --plain | tr '\n' ';')"
	echo "@@ reached $(systemctl is-active multi-user.target)"
	echo "@@ root $(findmnt -no SOURCE,FSTYPE /)"
	dd if=/dev/urandom of=$data bs=1M count=32 conv=fsync 2>/dev/null
	md5sum $data >$data.sum
	sync
	;;
second)
	echo "@@ state $(systemctl is-system-running --wait)"
	;;
esac
echo 3 >/proc/sys/vm/drop_caches
echo "@@ data $(md5sum -c $data.sum)"
echo "@@ trimmed $(fstrim -v / 2>&1)"
echo "@@ data-after-trim $(md5sum -c $data.sum)"
echo "@@ log begin"
dmesg -r | grep '^<[0-4]>'
echo "@@ log end"
case $1 in
first) systemctl reboot ;;
second) systemctl poweroff ;;
esac
exit
