package lab

import "maps"

// HeartbeatPackages are what DebianTree needs for a machine that runs the
// original Heartbeat.
var HeartbeatPackages = []string{"heartbeat", "iproute2", "iputils-arping", "iputils-ping", "net-tools", "netbase", "procps"}

// heartbeatService starts the original Heartbeat as Debian's init script does,
// and stops it cleanly when it is told to end. It stays while the daemon
// restarts itself, as it does after a split.
const heartbeatService = `for d in heartbeat heartbeat/ccm heartbeat/crm heartbeat/dopd crm; do
	install -d -m 750 -o hacluster -g haclient /run/$d
done
mkdir -p /run/resource-agents
trap '/usr/libexec/heartbeat/heartbeat -k; exit 0' TERM
rm -f /run/heartbeat.pid
/usr/libexec/heartbeat/heartbeat || exit
while :; do sleep 1000 & wait $!; done`

// RealHeartbeat makes the machine one that runs the original Heartbeat of tree,
// which DebianTree made of HeartbeatPackages, with these files beside those
// that Debian puts into /etc/ha.d. StopService is its clean stop, Kill the
// crash of its machine. When the original wants to reset the machine, after a
// resource did not stop, only this node goes down: a node is a PID namespace,
// and reboot(2) ends the first process of the caller's.
func (m *Machine) RealHeartbeat(tree string, files map[string]File) {
	m.Root = tree
	m.Service = []string{"sh", "-c", heartbeatService}
	if m.Files == nil {
		m.Files = map[string]File{}
	}
	maps.Copy(m.Files, files)
}
