//! The boot page.

/// `struct start_info`, `xen/include/public/xen.h`.
#[repr(C)]
#[derive(Debug)]
pub struct StartInfo {
    /// "xen-3.0-x86_64".
    pub magic: [u8; 32],
    /// Pages of the domain.
    pub nr_pages: u64,
    /// Machine address of the shared info page.
    pub shared_info: u64,
    /// `SIF_*`.
    pub flags: u32,
    /// Padding.
    pub pad0: u32,
    /// Frame of the xenstore ring.
    pub store_mfn: u64,
    /// Its event channel.
    pub store_evtchn: u32,
    /// Padding.
    pub pad1: u32,
    /// Frame of the console ring (domU form).
    pub console_mfn: u64,
    /// Its event channel.
    pub console_evtchn: u32,
    /// Padding.
    pub pad2: u32,
    /// Virtual address of the L4 table.
    pub pt_base: u64,
    /// Page-table frames from there on.
    pub nr_pt_frames: u64,
    /// Virtual address of the p2m list.
    pub mfn_list: u64,
    /// Virtual address of the module.
    pub mod_start: u64,
    /// Its bytes.
    pub mod_len: u64,
    /// Command line.
    pub cmd_line: [u8; 1024],
    /// First frame of the p2m when it is outside the initial mapping.
    pub first_p2m_pfn: u64,
    /// Frames of that.
    pub nr_p2m_frames: u64,
}

const _: () = assert!(core::mem::offset_of!(StartInfo, cmd_line) == 128);
const _: () = assert!(size_of::<StartInfo>() == 1168);

fn until_nul(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    core::str::from_utf8(bytes.get(..end).unwrap_or_default()).unwrap_or("(not text)")
}

impl StartInfo {
    /// The magic as text.
    pub fn magic(&self) -> &str {
        until_nul(&self.magic)
    }

    /// The command line as text.
    pub fn cmd_line(&self) -> &str {
        until_nul(&self.cmd_line)
    }

    /// The number behind `key=` on the command line.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.cmd_line()
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .and_then(|value| value.parse().ok())
    }
}
