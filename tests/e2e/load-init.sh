# Behind first.sh, the first process of the load tests: programs that keep all processors busy while
# processors go and come. On the command line: pontoon_test= what, pontoon_seconds= how long the part
# that has no end of its own takes. The first disk has the programs, and below src what is compiled.
cpus=$(nproc)

tools() {
	for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		for disk in /dev/xvda /dev/sda; do
			[ -b $disk ] && break 2
		done
		sleep 1
	done
	mkdir /tools
	mount -t ext4 -o ro $disk /tools || fail 'mount tools'
	mount -t devtmpfs devtmpfs /tools/dev
	mkdir /tools/dev/shm
	for dir in dev/shm tmp; do
		mount -t tmpfs -o size=75% tmpfs /tools/$dir
	done
	mount -t proc proc /tools/proc
	mount -t sysfs sysfs /tools/sys
}

# Runs one of the programs and says how long it took.
run() {
	name=$1
	shift
	began=$(date +%s)
	if PATH=/usr/bin chroot /tools "$@" >/tmp/said 2>&1; then
		echo "@@ ran $name $(($(date +%s) - began))"
	else
		fail "$name: $(tail -n 5 /tmp/said)"
	fi
}

# Every processor but the first, up or down.
others() {
	for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
		echo "$1" >"$cpu/online" || fail "$cpu does not go to $1"
	done
}

# Processors go and come until it is told to stop.
restless() {
	rm -f /tmp/stop
	(
		turns=0
		while [ ! -e /tmp/stop ]; do
			others 0
			others 1
			turns=$((turns + 1))
		done
		echo $turns >/tmp/turns
	) &
}

at_rest() {
	touch /tmp/stop
	wait
	echo "@@ turns $1 $(cat /tmp/turns)"
	[ "$(nproc)" = "$cpus" ] || fail "$(nproc) processors after $1"
}

# Compiles all there is with so many jobs at once, and says the sum of the objects.
compile() {
	mkdir "/tools/tmp/$1"
	cp /tools/src/* "/tools/tmp/$1"
	run "$1" make -s -C "/tmp/$1" -j "$2"
	echo "@@ $1 $(cat /tools/tmp/"$1"/*.o | md5sum | cut -d' ' -f1)"
	rm -r "/tools/tmp/$1"
}

# Ticks that all processors together were not given. (Those that were offline count that, too.)
stolen() {
	head -n 1 /proc/stat | awk '{ print $9 }'
}

stress() {
	run "stress-$1" stress-ng --temp-path /tmp --timeout "${2}s" --verify --metrics-brief $3
}

echo "@@ cpus $cpus"
case $test in
load)
	tools
	restless
	compile parallel "$cpus"
	at_rest parallel
	for how in '--pipe --process' '--pipe --threads' --process --threads; do
		run "hackbench$(echo "$how" | tr -d ' ')" hackbench --groups=2 --fds=6 --loops=40 $how
	done
	alone=$((seconds / 12 + 1))
	before=$(stolen)
	stress cpu $alone "--cpu $cpus"
	stress vm $alone "--vm $cpus --vm-bytes 16M"
	stress fork $alone "--fork $cpus"
	stress futex $alone "--futex $cpus"
	stress mmap $alone "--mmap $cpus --mmap-bytes 8M"
	stress switch $alone "--switch $cpus"
	echo "@@ stolen $(($(stolen) - before))"
	restless
	stress all $((seconds / 2)) "--cpu 1 --vm 1 --vm-bytes 16M --fork 1 --futex 1 --mmap 1 --mmap-bytes 8M --switch 1"
	at_rest all
	others 0
	echo "@@ alone-on $(nproc)"
	compile alone 1
	others 1
	;;
scale)
	# Phases, of which the first may be the compile; the others are the program's own.
	tools
	for phase in $(echo "$phases" | tr , ' '); do
		[ $phase = compile ] && continue
		loops="$loops $phase"
	done
	case $phases in
	compile*)
		mkdir /tools/tmp/compile
		cp /tools/src/* /tools/tmp/compile
		began=$(cut -d' ' -f1 /proc/uptime)
		echo "@@ compile begin"
		PATH=/usr/bin chroot /tools make -s -C /tmp/compile -j "$cpus" || fail compile
		echo "@@ compile end"
		echo "$began $(cut -d' ' -f1 /proc/uptime) $(ls /tools/tmp/compile/*.c | wc -l)" |
			awk '{ printf "{\"name\":\"compile\",\"count\":%d,\"seconds\":%.2f}\n", $3, $2 - $1 }'
		;;
	esac
	/scale "$seconds" $loops
	;;
clocks)
	/clocks "$seconds" 8 | sed 's/^/@@ clock-/'
	;;
*) fail "unknown test $test" ;;
esac
echo "@@ log begin"
dmesg -r | grep '^<[0-4]>'
echo "@@ log end"
echo "@@ end"
sync
poweroff -f
sleep 60
