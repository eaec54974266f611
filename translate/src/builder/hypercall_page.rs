//! The hypercall page: 128 slots of 32 bytes that load the number and enter ring 0.
//!
//! Slot 23 (iret) never returns: it pushes what [`crate::iret`] finds on the stack. Every other
//! slot keeps rcx and r11, which SYSCALL overwrites (`hypercall_page_initialise_ring3_kernel`).

const SLOT_BYTES: usize = 32;
const IRET: usize = 23;

/// The page's content.
#[must_use]
pub fn hypercall_page() -> [u8; 4096] {
    let mut page = [0xcc; 4096];
    for (number, slot) in page.chunks_exact_mut(SLOT_BYTES).enumerate() {
        // push %rcx; push %r11; [push %rax;] mov $number,%eax; syscall; [pop %r11; pop %rcx; ret]
        let nr = u8::try_from(number).unwrap_or(u8::MAX);
        let code: &[u8] = if number == IRET {
            &[0x51, 0x41, 0x53, 0x50, 0xb8, nr, 0, 0, 0, 0x0f, 0x05]
        } else {
            &[0x51, 0x41, 0x53, 0xb8, nr, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3]
        };
        if let Some(start) = slot.get_mut(..code.len()) {
            start.copy_from_slice(code);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_as_xen_makes_them() {
        let page = hypercall_page();
        let slot = |n: usize| &page[n * SLOT_BYTES..(n + 1) * SLOT_BYTES];
        assert_eq!(
            slot(1)[..15],
            [0x51, 0x41, 0x53, 0xb8, 1, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3, 0xcc]
        );
        assert_eq!(slot(23)[..12], [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0x0f, 0x05, 0xcc]);
        assert_eq!(slot(127)[4], 127);
    }
}
