//! The smallest PV kernel: says which ring it is in and powers off.
//!
//! `hello crash` and `hello reboot` end the domain the other two ways.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(target_os = "none", expect(unsafe_code, reason = "reads CS"))]

#[cfg(target_os = "none")]
mod guest {
    use tiny_guests::{StartInfo, hypercall, say};

    tiny_guests::guest!(main);

    fn selectors() -> (u16, u16) {
        let (cs, ss): (u16, u16);
        // SAFETY: reads two registers.
        unsafe {
            core::arch::asm!(
                "mov {0:x}, cs", "mov {1:x}, ss",
                out(reg) cs, out(reg) ss,
                options(nomem, nostack, preserves_flags),
            );
        }
        (cs, ss)
    }

    fn main(info: &'static StartInfo) -> ! {
        let (cs, ss) = selectors();
        say!("hello from ring {}, cs={cs:#x} ss={ss:#x}", cs & 3);
        say!(
            "start_info {:p} magic {:?} nr_pages {} flags {:#x}",
            info,
            info.magic(),
            info.nr_pages,
            info.flags
        );
        say!(
            "shared_info {:#x} pt_base {:#x}+{} mfn_list {:#x} p2m {:#x}+{}",
            info.shared_info,
            info.pt_base,
            info.nr_pt_frames,
            info.mfn_list,
            info.first_p2m_pfn,
            info.nr_p2m_frames
        );
        say!("module {:#x}+{} command line {:?}", info.mod_start, info.mod_len, info.cmd_line());
        let reason = match info.cmd_line().split_ascii_whitespace().last() {
            Some("crash") => hypercall::SHUTDOWN_CRASH,
            Some("reboot") => hypercall::SHUTDOWN_REBOOT,
            _ => hypercall::SHUTDOWN_POWEROFF,
        };
        say!("hello: shutdown {reason}");
        hypercall::shutdown(reason)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("hello is a Xen PV kernel: build it for x86_64-unknown-none");
}
