//! The PowerShell script that creates the virtual machine.

use super::plan::{Medium, Plan};
use crate::guest::{Mac, Place};
use anyhow::Result;
use std::fmt::Write as _;

/// Windows PowerShell reads a script in the machine's own code page unless it begins so.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// What the shim keeps for itself (docs/memory.md): this, and 0.2 % of the memory.
const SHIM_MIB: u64 = 8;

/// Memory of a machine whose guest is to have `guest_mib`; Hyper-V takes even numbers.
#[must_use]
pub const fn machine_mib(guest_mib: u64) -> u64 {
    (guest_mib + SHIM_MIB + guest_mib.div_ceil(500)).next_multiple_of(2)
}

/// A string that PowerShell takes as it is. Its other quotation marks end strings, too.
fn quoted(text: &str) -> String {
    let double = |c: char| if matches!(c, '\'' | '\u{2018}'..='\u{201b}') { 2 } else { 1 };
    let printed = text.chars().filter(|c| !c.is_control());
    let inner: String = printed.flat_map(|c| std::iter::repeat_n(c, double(c))).collect();
    format!("'{inner}'")
}

fn hyper_v(mac: Mac) -> String {
    mac.0.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The script for a plan; `boot` is the file the machine starts from.
///
/// # Errors
/// The machine cannot have these disks.
pub fn script(plan: &Plan, medium: Medium, boot: &str) -> Result<String> {
    let places = plan.places(medium)?;
    let mut out = String::from(BYTE_ORDER_MARK);
    let name = quoted(&plan.guest.name);
    write!(
        out,
        "# Creates the virtual machine {name}. Run it on the Hyper-V host, as administrator, with\n\
         # the files it came with beside it:\n#\n\
         #     .\\{}.ps1 -Switch 'External' -Start\n#\n\
         #Requires -Version 5.1\n#Requires -Modules Hyper-V\n#Requires -RunAsAdministrator\n\n\
         [CmdletBinding()]\nparam(\n\
         \x20   # Name of the virtual machine.\n    [string]$Name = {name},\n\
         \x20   # Switch its network cards are connected to; without one they are not.\n\
         \x20   [string]$Switch = '',\n\
         \x20   # Switches by the networks of the old host, where cards go to several.\n\
         \x20   [hashtable]$Switches = @{{}},\n\
         \x20   # Where its disks are.\n    [string]$Directory = $PSScriptRoot,\n\
         \x20   # Start it.\n    [switch]$Start\n)\n\n\
         Set-StrictMode -Version 2.0\n$ErrorActionPreference = 'Stop'\n\n",
        plan.stem()
    )?;
    tables(&mut out, plan, &places)?;
    out.push_str(CHECKS.replace("BOOTFILE", &quoted(boot)).as_str());
    let (generation, memory) = (medium.generation(), machine_mib(plan.guest.memory_mib));
    write!(
        out,
        "\n$vm = New-VM -Name $Name -Generation {generation} -MemoryStartupBytes {memory}MB -NoVHD\n\
         try {{\n    Set-VM -VM $vm -ProcessorCount {} -StaticMemory\n",
        plan.guest.cpus
    )?;
    out.push_str(DEVICES);
    out.push_str(match medium {
        Medium::Vhdx => FROM_DISK,
        Medium::Iso => FROM_DVD,
        Medium::Vhd => FROM_IDE,
    });
    out.push_str(GUEST_DEVICES);
    Ok(out.replace('\n', "\r\n"))
}

/// The guest's disks and network cards.
fn tables(out: &mut String, plan: &Plan, places: &[Place]) -> Result<()> {
    out.push_str(
        "# The guest's disks by their places on the first SCSI controller.\n$disks = @(\n",
    );
    for (disk, place) in plan.disks.iter().zip(places) {
        let file = plan.disk_file(disk).unwrap_or_default();
        writeln!(
            out,
            "    [pscustomobject]@{{ Guest = {}; Location = {}; Dvd = ${}; File = {} }}",
            quoted(&disk.vdev.name()),
            place.lun,
            place.cdrom,
            quoted(&file)
        )?;
    }
    out.push_str(")\n# Its network cards.\n$cards = @(\n");
    for nic in &plan.guest.nics {
        writeln!(
            out,
            "    [pscustomobject]@{{ Guest = 'vif{}'; Address = '{}'; Network = {} }}",
            nic.number,
            hyper_v(nic.mac),
            quoted(nic.network.as_deref().unwrap_or_default())
        )?;
    }
    out.push_str(")\n\n");
    Ok(())
}

const CHECKS: &str = r#"function Get-PackFile([string]$File) {
    $path = Join-Path -Path $Directory -ChildPath $File
    if (-not (Test-Path -LiteralPath $path -PathType Leaf)) {
        throw "$path is not there: copy the whole directory"
    }
    return (Resolve-Path -LiteralPath $path).ProviderPath
}

$boot = Get-PackFile BOOTFILE
foreach ($disk in $disks) {
    if ($disk.File) { $disk.File = Get-PackFile $disk.File }
}
foreach ($card in $cards) {
    $to = $Switch
    if ($Switches.ContainsKey($card.Network)) { $to = $Switches[$card.Network] }
    if ($to -and -not (Get-VMSwitch -Name $to -ErrorAction SilentlyContinue)) {
        throw "there is no switch '$to'"
    }
    $card | Add-Member -NotePropertyName 'Switch' -NotePropertyValue $to
}
if (Get-VM -Name $Name -ErrorAction SilentlyContinue) {
    throw "there is a virtual machine '$Name' already"
}
"#;

const DEVICES: &str = r"    $known = (Get-Command -Name Set-VM).Parameters
    if ($known.ContainsKey('AutomaticCheckpointsEnabled')) {
        Set-VM -VM $vm -AutomaticCheckpointsEnabled $false
    }
    Get-VMNetworkAdapter -VM $vm | Remove-VMNetworkAdapter
    if (-not (Get-VMScsiController -VM $vm)) { Add-VMScsiController -VM $vm }
";

const FROM_DISK: &str = r"    Add-VMHardDiskDrive -VM $vm -ControllerType SCSI -ControllerNumber 0 -ControllerLocation 0 -Path $boot
    $drive = Get-VMHardDiskDrive -VM $vm -ControllerType SCSI -ControllerNumber 0 -ControllerLocation 0
    Set-VMFirmware -VM $vm -EnableSecureBoot Off -FirstBootDevice $drive
";

const FROM_DVD: &str = r"    Add-VMDvdDrive -VM $vm -ControllerNumber 0 -ControllerLocation 0 -Path $boot
    $drive = Get-VMDvdDrive -VM $vm -ControllerNumber 0 -ControllerLocation 0
    Set-VMFirmware -VM $vm -EnableSecureBoot Off -FirstBootDevice $drive
";

const FROM_IDE: &str = r"    Add-VMHardDiskDrive -VM $vm -ControllerType IDE -ControllerNumber 0 -ControllerLocation 0 -Path $boot
";

const GUEST_DEVICES: &str = r#"    foreach ($disk in $disks) {
        $at = @{ VM = $vm; ControllerNumber = 0; ControllerLocation = $disk.Location }
        if ($disk.File) { $at.Path = $disk.File }
        if ($disk.Dvd) {
            Add-VMDvdDrive @at
        } else {
            Add-VMHardDiskDrive -ControllerType SCSI @at
        }
    }
    foreach ($card in $cards) {
        $new = @{ VM = $vm; Name = $card.Guest; StaticMacAddress = $card.Address }
        if ($card.Switch) { $new.SwitchName = $card.Switch }
        Add-VMNetworkAdapter @new
    }
    Set-VMComPort -VM $vm -Number 1 -Path "\\.\pipe\$Name"
} catch {
    Remove-VM -VM $vm -Force
    throw
}
Write-Output "The virtual machine '$Name' is there; its console is \\.\pipe\$Name."
if ($Start) { Start-VM -VM $vm }
"#;
