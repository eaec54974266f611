//! The keys of xl.cfg(5) and xm's configurations, and what becomes of each.

/// Keys that are carried over.
pub const CARRIED: [&str; 16] = [
    "name",
    "uuid",
    "memory",
    "maxmem",
    "vcpus",
    "maxvcpus",
    "kernel",
    "ramdisk",
    "root",
    "extra",
    "cmdline",
    "bootloader",
    "bootloader_args",
    "disk",
    "vif",
    "type",
];

/// Reasons for which others are not, with their keys; some of them judged by their values.
pub const LEFT_OUT: [(&str, &[&str]); 9] = [
    (
        "the host's scheduling is Hyper-V's: Set-VMProcessor",
        &[
            "cpus",
            "cpus_soft",
            "pool",
            "cpu_weight",
            "cap",
            "period",
            "slice",
            "latency",
            "extratime",
            "cpu",
            "tsc_mode",
            "vnuma",
            "vpmu",
            "cpuid",
            "e820_host",
            "nomigrate",
            "max_event_channels",
            "max_grant_frames",
            "max_maptrack_frames",
            "max_grant_version",
            "driver_domain",
            "vmtrace_buf_kb",
            "mca_caps",
            "msr_relaxed",
            "llc_colors",
            "processor",
        ],
    ),
    (
        "what the machine does at its end is Hyper-V's: Set-VM",
        &[
            "on_poweroff",
            "on_reboot",
            "on_crash",
            "on_watchdog",
            "on_soft_reset",
            "xend_suspend_evtchn_compat",
            "localtime",
            "rtc_timeoffset",
        ],
    ),
    (
        "there is no such device on Hyper-V",
        &[
            "pci",
            "pci_permissive",
            "pci_msitranslate",
            "pci_seize",
            "pci_power_mgmt",
            "gfx_passthru",
            "rdm",
            "rdm_mem_boundary",
            "usb",
            "usbdev",
            "usbctrl",
            "usbdevice",
            "usbversion",
            "vtpm",
            "p9",
            "pvcalls",
            "vif2",
            "iomem",
            "ioports",
            "irqs",
            "irq",
            "ioport",
            "dtdev",
            "passthrough",
            "vkb",
            "vsnd",
            "vdispl",
            "channel",
            "virtio",
            "vscsi",
            "vkb_device",
            "device_tree",
            "nics",
            "vuart",
        ],
    ),
    (
        "the console is the machine's COM port, and VMConnect's screen",
        &[
            "vfb",
            "vnc",
            "vnclisten",
            "vncdisplay",
            "vncunused",
            "vncpasswd",
            "vncconsole",
            "vncviewer",
            "sdl",
            "opengl",
            "nographic",
            "keymap",
            "serial",
            "display",
            "xauthority",
            "spice",
            "spiceport",
            "spicehost",
            "spicetls_port",
            "spicedisable_ticketing",
            "spicepasswd",
            "spiceagent_mouse",
            "spicevdagent",
            "spice_clipboard_sharing",
            "spiceusbredirection",
            "spice_image_compression",
            "spice_streaming_video",
            "vga",
            "videoram",
            "stdvga",
            "soundhw",
        ],
    ),
    (
        "it is about the host's backends",
        &[
            "backend",
            "device_model",
            "device_model_args",
            "device_model_args_pv",
            "device_model_args_hvm",
            "device_model_version",
            "device_model_override",
            "device_model_user",
            "device_model_stubdomain_override",
            "device_model_stubdomain_seclabel",
            "stubdomain_memory",
            "stubdomain_kernel",
            "stubdomain_ramdisk",
            "stubdomain_cmdline",
            "bootloader_user",
            "bootloader_restrict",
            "dm_restrict",
            "xenstore_feature_mask",
            "xenstore_quota",
            "trap_unmapped_accesses",
        ],
    ),
    (
        "Hyper-V isolates machines, Xen's security labels do not apply",
        &["seclabel", "init_seclabel", "access_control"],
    ),
    (
        "it is for HVM guests, which a PV guest is not",
        &[
            "boot",
            "acpi",
            "apic",
            "pae",
            "hap",
            "oos",
            "nx",
            "viridian",
            "hpet",
            "vpt_align",
            "timer_mode",
            "shadow_memory",
            "nestedhvm",
            "altp2m",
            "altp2mhvm",
            "altp2m_count",
            "acpi_s3",
            "acpi_s4",
            "acpi_laptop_slate",
            "acpi_firmware",
            "smbios",
            "smbios_firmware",
            "ms_vm_genid",
            "xen_platform_pci",
            "xen_platform_pci_bar_uc",
            "vendor_device",
            "hdtype",
            "bios",
            "bios_path_override",
            "firmware",
            "mmio_hole",
            "hvm_pirq",
            "guest_os_type",
            "pvshim",
            "pvshim_path",
            "pvshim_cmdline",
            "pvshim_extra",
            "arm_sci",
            "sve",
            "tee",
            "gic_version",
            "nr_spis",
        ],
    ),
    (
        "addresses are the guest's own business, or its network's",
        &[
            "dhcp",
            "ip",
            "netmask",
            "gateway",
            "hostname",
            "interface",
            "nfs_server",
            "nfs_root",
            "nfs_options",
            "nfs_rootfs",
        ],
    ),
    ("it is for xm's tools", &["features", "pygrub", "restart", "vcpu_avail", "autostart"]),
];

/// Why a known key is not carried over; `None` for others.
#[must_use]
pub fn why_left_out(name: &str) -> Option<&'static str> {
    LEFT_OUT.iter().find(|(_, keys)| keys.contains(&name)).map(|(why, _)| *why)
}

/// The known key that is most like `name`, if one is much like it.
#[must_use]
pub fn similar(name: &str) -> Option<&'static str> {
    let all = CARRIED.iter().chain(LEFT_OUT.iter().flat_map(|(_, keys)| keys.iter()));
    // Of several, the first: those that are carried over.
    let near = all.map(|key| (distance(name, key), *key)).min_by_key(|(distance, _)| *distance);
    near.filter(|(distance, key)| *distance <= 2 && *distance < key.len().div_ceil(2))
        .map(|(_, key)| key)
}

/// Letters to insert, remove or change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (place, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let changed = diagonal + usize::from(x != y);
            diagonal = *place;
            left = changed.min(left + 1).min(*place + 1);
            *place = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_answer() {
        let mut all: Vec<_> =
            CARRIED.iter().chain(LEFT_OUT.iter().flat_map(|(_, keys)| keys.iter())).collect();
        all.sort();
        let twice: Vec<_> = all.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }

    #[test]
    fn neighbours_are_found() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(similar("vcpu"), Some("vcpus"));
        assert_eq!(similar("ramdsik"), Some("ramdisk"));
        assert_eq!(similar("colour"), None);
        assert!(why_left_out("pci").unwrap().contains("no such device"));
        assert_eq!(why_left_out("kernel"), None);
    }
}
