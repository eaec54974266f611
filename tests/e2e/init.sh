# Behind first.sh, the first process of the test guests. pontoon_test= chooses what happens; lines
# that begin with @@ are read by the tests.
echo "@@ init $(uname -r)"
echo "@@ uptime $(cut -d' ' -f1 /proc/uptime)"
echo "@@ hypervisor $(cat /sys/hypervisor/type 2>/dev/null) $(cat /sys/hypervisor/guest_type 2>/dev/null)"
echo "@@ cpus $(nproc)"
echo "@@ clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"

# What the kernel said at warning level and above.
log() {
	echo "@@ log begin"
	dmesg -r | grep '^<[0-4]>'
	echo "@@ log end"
}

case ${test:-none} in
stress)
	/stress
	echo "@@ stress $?"
	log
	;;
stress:*)
	/stress $(echo "${test#stress:}" | tr , ' ')
	echo "@@ stress $?"
	log
	;;
log) log ;;
detect)
	dmesg | grep -e 'Hypervisor detected' -e 'Hyper-V' -e 'tsc: Detected'
	log
	;;
online:*)
	n=0
	while [ "$(nproc)" != "${test#online:}" ] && [ $n -lt 30 ]; do
		sleep 1
		n=$((n + 1))
	done
	echo "@@ online $(cat /sys/devices/system/cpu/online)"
	;;
reboot)
	reboot -f
	sleep 60
	;;
crash)
	echo c >/proc/sysrq-trigger
	sleep 60
	;;
clock)
	# The test has a clock of its own, and looks at it when it reads these lines.
	clock() { echo "@@ clock-$1 $(cut -d' ' -f1 /proc/uptime)"; }
	clock 1
	sleep 4
	clock 2
	echo "@@ move-now"
	sleep 3
	clock 3
	sleep 5
	clock 4
	log
	;;
idle:*)
	sleep "${test#idle:}"
	;;
bench)
	/micro
	echo "@@ micro $?"
	;;
shell)
	setsid cttyhack sh
	;;
*) echo "@@ unknown test $test" ;;
esac
echo "@@ end"
# Give a console that is still on its way a moment.
sync
poweroff -f
sleep 60
