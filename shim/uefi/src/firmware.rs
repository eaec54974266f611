//! What the firmware knows of the machine.

use alloc::vec::Vec;

use boot_abi::{Channel, Framebuffer, PixelFormat};
use uefi::boot::{self, OpenProtocolAttributes, OpenProtocolParams};
use uefi::proto::console::gop::{GraphicsOutput, PixelFormat as GopFormat};
use uefi::proto::loaded_image::LoadedImage;
use uefi::runtime::{self, VariableVendor};
use uefi::table::cfg::ConfigTableEntry;
use uefi::{cstr16, system};

/// Whether the firmware checks signatures.
pub fn secure_boot() -> bool {
    let mut value = [0; 1];
    let name = cstr16!("SecureBoot");
    runtime::get_variable(name, &VariableVendor::GLOBAL_VARIABLE, &mut value)
        .is_ok_and(|(value, _)| value == [1])
}

/// The load options as text; what is not ASCII is left out, and options that are no text at all are
/// as good as none.
pub fn load_options() -> Vec<u8> {
    let image = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle());
    let bytes = image.as_ref().ok().and_then(|image| image.load_options_as_bytes());
    let (units, _) = bytes.unwrap_or_default().as_chunks::<2>();
    let text = units.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|&unit| unit != 0);
    text.map(|unit| u8::try_from(unit).ok().filter(u8::is_ascii))
        .collect::<Option<_>>()
        .unwrap_or_default()
}

/// Bytes of an RSDP of ACPI 1.0, and of the structure since.
const RSDP_BYTES: [usize; 2] = [20, 36];

/// A copy of ACPI's root.
pub fn rsdp() -> Option<Vec<u8>> {
    let old = (ConfigTableEntry::ACPI_GUID, RSDP_BYTES[0]);
    let new = (ConfigTableEntry::ACPI2_GUID, RSDP_BYTES[1]);
    system::with_config_table(|tables| {
        [new, old].into_iter().find_map(|(guid, bytes)| {
            let table = tables.iter().find(|table| table.guid == guid)?;
            // SAFETY: the firmware says that an RSDP of this version is there.
            let rsdp = unsafe { core::slice::from_raw_parts(table.address.cast::<u8>(), bytes) };
            Some(rsdp.to_vec())
        })
    })
}

/// The screen, as the firmware has set it.
pub fn screen() -> Option<Framebuffer> {
    let handle = boot::get_handle_for_protocol::<GraphicsOutput>().ok()?;
    let params = OpenProtocolParams { handle, agent: boot::image_handle(), controller: None };
    // SAFETY: only looked at. Opened exclusively, the firmware's console would lose its screen.
    let mut gop = unsafe {
        boot::open_protocol::<GraphicsOutput>(params, OpenProtocolAttributes::GetProtocol)
    }
    .ok()?;
    let mode = gop.current_mode_info();
    let byte = |shift| Channel { shift, bits: 8 };
    let mask =
        |mask: u32| Channel { shift: mask.trailing_zeros() as u8, bits: mask.count_ones() as u8 };
    let format = match mode.pixel_format() {
        GopFormat::Rgb => PixelFormat::Rgb(byte(0), byte(8), byte(16)),
        GopFormat::Bgr => PixelFormat::Rgb(byte(16), byte(8), byte(0)),
        GopFormat::Bitmask => {
            let of = mode.pixel_bitmask()?;
            PixelFormat::Rgb(mask(of.red), mask(of.green), mask(of.blue))
        }
        GopFormat::BltOnly => return None,
    };
    let (width, height) = mode.resolution();
    Some(Framebuffer {
        address: gop.frame_buffer().as_mut_ptr() as u64,
        pitch: u32::try_from(mode.stride() * 4).ok()?,
        width: u32::try_from(width).ok()?,
        height: u32::try_from(height).ok()?,
        bpp: 32,
        format,
    })
}
