//! The network device protocol, as part of [`super::xen`].

use xen_abi::io::netif::*;

use super::{Table, codes, constants, structures};

/// Adds it.
pub fn add(t: &mut Table) {
    structures! { t;
        NetifTxRequest = "netif_tx_request_t" { gref, offset, flags, id, size }
        NetifTxResponse = "netif_tx_response_t" { id, status }
        NetifRxRequest = "netif_rx_request_t" { id, pad, gref }
        NetifRxResponse = "netif_rx_response_t" { id, offset, flags, status }
        NetifExtraInfo = "netif_extra_info_t" { type_ = "type", flags, u }
        NetifExtraGso = "__typeof__(((netif_extra_info_t *)0)->u.gso)" {
            size, type_ = "type", pad, features,
        }
        NetifExtraHash = "__typeof__(((netif_extra_info_t *)0)->u.hash)" {
            type_ = "type", algorithm, value,
        }
        NetifCtrlRequest = "struct xen_netif_ctrl_request" { id, type_ = "type", data }
        NetifCtrlResponse = "struct xen_netif_ctrl_response" { id, type_ = "type", status, data }
        NetifGref = "struct xen_netif_gref" { ref_ = "ref", flags, status }
    }
    codes! { t; NetifStatus, "NETIF_RSP_", to_uppercase { DROPPED, ERROR, OKAY, NULL } }
    codes! { t; ExtraType, "XEN_NETIF_EXTRA_TYPE_", to_uppercase {
        NONE, GSO, MCAST_ADD, MCAST_DEL, HASH,
    } }
    codes! { t; GsoType, "XEN_NETIF_GSO_TYPE_", to_uppercase { NONE, TCPV4, TCPV6 } }
    codes! { t; HashType, "_XEN_NETIF_CTRL_HASH_TYPE_", to_uppercase {
        IPV4, IPV4_TCP, IPV6, IPV6_TCP,
    } }
    codes! { t; HashAlgorithm, "XEN_NETIF_CTRL_HASH_ALGORITHM_", to_uppercase { NONE, TOEPLITZ } }
    codes! { t; CtrlType, "XEN_NETIF_CTRL_TYPE_", to_uppercase {
        INVALID, GET_HASH_FLAGS, SET_HASH_FLAGS, SET_HASH_KEY, GET_HASH_MAPPING_SIZE,
        SET_HASH_MAPPING_SIZE, SET_HASH_MAPPING, SET_HASH_ALGORITHM, GET_GREF_MAPPING_SIZE,
        ADD_GREF_MAPPING, DEL_GREF_MAPPING,
    } }
    codes! { t; CtrlStatus, "XEN_NETIF_CTRL_STATUS_", to_uppercase {
        SUCCESS, NOT_SUPPORTED, INVALID_PARAMETER, BUFFER_OVERFLOW,
    } }
    constants! { t;
        NR_SLOTS_MIN = "XEN_NETIF_NR_SLOTS_MIN",
        MAX_TX_SIZE = "XEN_NETIF_MAX_TX_SIZE",
        EXTRA_FLAG_MORE = "XEN_NETIF_EXTRA_FLAG_MORE",
        CTRLF_GREF_READONLY = "XEN_NETIF_CTRLF_GREF_readonly",
        txf::CSUM_BLANK = "NETTXF_csum_blank",
        txf::DATA_VALIDATED = "NETTXF_data_validated",
        txf::MORE_DATA = "NETTXF_more_data",
        txf::EXTRA_INFO = "NETTXF_extra_info",
        rxf::DATA_VALIDATED = "NETRXF_data_validated",
        rxf::CSUM_BLANK = "NETRXF_csum_blank",
        rxf::MORE_DATA = "NETRXF_more_data",
        rxf::EXTRA_INFO = "NETRXF_extra_info",
        rxf::GSO_PREFIX = "NETRXF_gso_prefix",
        hash_types::IPV4 = "XEN_NETIF_CTRL_HASH_TYPE_IPV4",
        hash_types::IPV4_TCP = "XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP",
        hash_types::IPV6 = "XEN_NETIF_CTRL_HASH_TYPE_IPV6",
        hash_types::IPV6_TCP = "XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP",
    }
}
