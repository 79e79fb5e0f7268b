package ipvs

// Names and numbers of linux/ip_vs.h (UAPI), as far as the plane speaks them.

const (
	familyName    = "IPVS" // IPVS_GENL_NAME
	familyVersion = 1      // IPVS_GENL_VERSION
	genlHeader    = 4      // length of struct genlmsghdr
)

// Commands, IPVS_CMD_*.
const (
	cmdNewService = 1
	cmdSetService = 2
	cmdDelService = 3
	cmdGetService = 4
	cmdNewDest    = 5
	cmdSetDest    = 6
	cmdDelDest    = 7
	cmdGetDest    = 8
	cmdNewDaemon  = 9
	cmdDelDaemon  = 10
	cmdGetDaemon  = 11
	cmdSetConfig  = 12
	cmdGetConfig  = 13
	cmdSetInfo    = 14 // the answer to cmdGetInfo
	cmdGetInfo    = 15
)

// Attributes of a message, IPVS_CMD_ATTR_*.
const (
	attrService       = 1
	attrDest          = 2
	attrDaemon        = 3
	attrTimeoutTCP    = 4
	attrTimeoutTCPFin = 5
	attrTimeoutUDP    = 6
)

// Attributes of a service, IPVS_SVC_ATTR_*.
const (
	svcFamily   = 1
	svcProtocol = 2
	svcAddr     = 3
	svcPort     = 4 // network byte order
	svcMark     = 5
	svcSched    = 6
	svcFlags    = 7 // struct ip_vs_flags
	svcTimeout  = 8 // seconds
	svcNetmask  = 9 // IPv4: the mask in network byte order; IPv6: the prefix length
	svcStats    = 10
	svcEngine   = 11 // persistence engine
	svcStats64  = 12
)

// Attributes of a real server ("destination"), IPVS_DEST_ATTR_*.
const (
	destAddr     = 1
	destPort     = 2 // network byte order
	destForward  = 3
	destWeight   = 4
	destUpper    = 5
	destLower    = 6
	destActive   = 7
	destInactive = 8
	destPersist  = 9
	destStats    = 10
	destFamily   = 11 // since Linux 3.18; the service's family before
	destStats64  = 12 // since Linux 4.1
	destTunKind  = 13 // since Linux 5.2
	destTunPort  = 14 // network byte order
	destTunFlags = 15
)

// Flags of a tunnel, IP_VS_TUNNEL_ENCAP_FLAG_*.
const (
	tunFlagSum            = 1
	tunFlagRemoteChecksum = 2
)

// Attributes of a sync daemon, IPVS_DAEMON_ATTR_*.
const (
	daemonState     = 1 // IP_VS_STATE_*: 1 master, 2 backup
	daemonInterface = 2
	daemonID        = 3
	daemonMaxLen    = 4 // this and the following since Linux 4.3
	daemonGroup     = 5
	daemonGroup6    = 6
	daemonPort      = 7
	daemonTTL       = 8
)

// Attributes of counters, IPVS_STATS_ATTR_*.
const (
	statsConns    = 1
	statsInPkts   = 2
	statsOutPkts  = 3
	statsInBytes  = 4
	statsOutBytes = 5
	statsCPS      = 6
	statsInPPS    = 7
	statsOutPPS   = 8
	statsInBPS    = 9
	statsOutBPS   = 10
)

// Attributes of the answer to cmdGetInfo, IPVS_INFO_ATTR_*.
const (
	infoVersion  = 1
	infoConnSize = 2
)

// Flags of a service, IP_VS_SVC_F_*.
const (
	flagPersistent = 0x01
	flagOnePacket  = 0x04
	flagSched1     = 0x08
	flagSched2     = 0x10
	flagSched3     = 0x20
)

// Forwarding methods, IP_VS_CONN_F_FWD_MASK and below.
const (
	forwardMask   = 7
	forwardMasq   = 0
	forwardLocal  = 1
	forwardTunnel = 2
	forwardRoute  = 3
)
