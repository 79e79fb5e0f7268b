package ipvs

// Names and numbers of linux/ip_vs.h (UAPI), as far as the plane speaks them.

const (
	familyName    = "IPVS" // IPVS_GENL_NAME
	familyVersion = 1      // IPVS_GENL_VERSION
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
	cmdSetConfig  = 12
	cmdGetConfig  = 13
	cmdSetInfo    = 14 // the answer to cmdGetInfo
	cmdGetInfo    = 15
)

// Attributes of a message, IPVS_CMD_ATTR_*.
const (
	attrService       = 1
	attrDest          = 2
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
	destStats    = 10
	destFamily   = 11 // since Linux 3.18; the service's family before
	destStats64  = 12 // since Linux 4.1
)

// Attributes of counters, IPVS_STATS_ATTR_*.
const (
	statsConns    = 1
	statsInPkts   = 2
	statsOutPkts  = 3
	statsInBytes  = 4
	statsOutBytes = 5
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
