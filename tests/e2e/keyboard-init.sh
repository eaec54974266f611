# Behind first.sh, the first process of the keyboard tests. The test has keys pressed when it sees some
# of the lines that begin with @@. On the command line: pontoon_tty= what they type on,
# pontoon_first= and pontoon_second= how many bytes that is, before the keyboard is taken away and after;
# pontoon_much= bytes that are typed while nobody reads.

# Waits until the kernel has so many keyboards: on hvc0 it has none, natively what is pressed too early
# is lost.
keyboards() {
	if [ "$tty" = /dev/hvc0 ]; then
		sleep 1
		return
	fi
	n=0
	while [ "$(grep -c 'AT Translated Set 2 keyboard' /proc/bus/input/devices)" != "$1" ]; do
		n=$((n + 1))
		if [ $n -gt 300 ]; then
			echo "@@ failed to wait for $1 keyboards"
			break
		fi
		usleep 100000
	done
	usleep 200000
}

# What comes, byte by byte as it is.
typed() {
	echo "@@ $1-now"
	echo "@@ $1 $(timeout 60 dd bs=1 count="$2" <&3 2>/dev/null | hexdump -v -e '1/1 "%02x"')"
}

exec 3<"$tty"
stty -icanon -echo -isig -icrnl -ixon -iexten min 1 time 0 <&3
keyboards 1
typed first "$first"
echo "@@ remove-now"
keyboards 0
echo "@@ add-now"
keyboards 1
typed second "$second"
echo "@@ log begin"
dmesg -r | grep '^<[0-4]>'
echo "@@ log end"
if [ "$tty" = /dev/hvc0 ]; then
	echo "@@ much-now"
	sleep 3
	sum=$(timeout 120 dd bs=1 count="$much" <&3 2>/dev/null | md5sum)
	echo "@@ much ${sum%% *}"
	stty sane <&3
	exec 3<&-
	setsid cttyhack sh
fi
echo "@@ end"
sync
poweroff -f
sleep 60
