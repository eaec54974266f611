//! Hyper-V's network card on VMBus (`drivers/net/hyperv/hyperv_net.h`; openvmm `netvsp`).
//!
//! ```text
//! nvsp   what travels on the channel: versions, buffers, sub-channels, "here is RNDIS"
//! rndis  what is in a buffer or in guest pages: initialise, query, set, packets (MS-RNDIS)
//! ppi    what goes with a packet: checksum, segmentation, VLAN, hash
//! oid    what can be queried and set
//! ndis   the larger values of those: offloads, receive-side scaling, link state
//! ```
//! Order, guest first: INIT (until a version is accepted), SEND_NDIS_CONFIG and SEND_NDIS_VERSION
//! (neither answered), SEND_RECEIVE_BUFFER, SEND_SEND_BUFFER; then RNDIS INITIALIZE, queries, sets,
//! SUB_CHANNEL. Nothing is received before the packet filter is set.

pub mod ndis;
pub mod nvsp;
pub mod oid;
pub mod ppi;
pub mod rndis;

pub use oid::Oid;
