# Behind lines that set server, port and key; typed at a Debian guest's console: sh
# /dev/xvdb. Lines that begin with @@ are read by the test.

# Behind what the shell did to the terminal.
echo
echo "@@ state $(systemctl is-system-running --wait)"
# eth0 or enX0, as its udev has it.
nic=$(ls /sys/class/net | grep -v '^lo$')
for second in $(seq 60); do
	address=$(ip -4 -o addr show dev $nic scope global | awk '{ print $4 }')
	[ -n "$address" ] && break
	sleep 1
done
echo "@@ nic $nic $(basename "$(readlink /sys/class/net/$nic/device/driver)")"
echo "@@ address $address"
rm -rf /etc/apt/sources.list.d/*
echo "deb [trusted=yes] http://$server:$port/ ./" >/etc/apt/sources.list
apt-get -qq update && apt-get -qq -y install pontoon-noise >/dev/null
echo "@@ apt $?"
echo "@@ noise $(md5sum </usr/share/pontoon-noise | cut -d' ' -f1)"
mkdir -p -m 700 /root/.ssh
echo "$key" >/root/.ssh/authorized_keys
echo "@@ sshd $(systemctl is-active ssh)"
echo "@@ serving"
read -r line
echo "@@ lost $(cat /sys/class/net/$nic/statistics/[rt]x_errors | paste -sd' ')"
echo "@@ log begin"
dmesg -r | grep '^<[0-4]>'
echo "@@ log end"
systemctl poweroff
exit
