//! Network specifications (xl-network-configuration(5)): parameters by name.

use crate::guest::Mac;
use anyhow::{Context, Result, bail};

/// A network interface as the configuration has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VifSpec {
    /// Its address, if it says one.
    pub mac: Option<Mac>,
    /// The host's bridge.
    pub bridge: Option<String>,
    /// Its MTU.
    pub mtu: Option<u16>,
    /// Its number, if not its place in the list.
    pub devid: Option<u32>,
    /// Parameters that have no meaning outside of Xen's host, as they were given.
    pub left_out: Vec<String>,
}

/// Parameters for the host's side of the interface, which is Hyper-V's now.
const HOSTS: [&str; 13] = [
    "gatewaydev",
    "netdev",
    "type",
    "model",
    "vifname",
    "script",
    "ip",
    "backend",
    "rate",
    "accel",
    "trusted",
    "hwaddr",
    "forwarddev",
];

impl VifSpec {
    /// Reads a specification.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut vif = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name.trim_end() {
                "mac" => vif.mac = Some(Mac::parse(value)?),
                "bridge" => vif.bridge = Some(value.to_owned()),
                "mtu" => {
                    let mtu = value.parse().ok().filter(|mtu| (68..=65521).contains(mtu));
                    vif.mtu = Some(
                        mtu.with_context(|| format!("mtu={value}: 68 to 65521 was expected"))?,
                    );
                }
                "devid" => {
                    let devid = value.parse().ok().filter(|devid| *devid < 256);
                    vif.devid = Some(
                        devid.with_context(|| format!("devid={value}: 0 to 255 was expected"))?,
                    );
                }
                "type" if value == "ioemu" => {
                    bail!("type=ioemu: an emulated card, which is for HVM guests")
                }
                name if HOSTS.contains(&name) || name.starts_with("colo_") => {
                    vif.left_out.push(word.to_owned());
                }
                name => bail!("\"{name}\" is no parameter of a network interface that is known"),
            }
        }
        Ok(vif)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn specifications() {
        let vif =
            VifSpec::parse("mac=00:16:3E:74:3d:76, bridge=xenbr0,model=e1000,mtu=9000,devid=3");
        let vif = vif.unwrap();
        assert_eq!(vif.mac.unwrap().to_string(), "00:16:3e:74:3d:76");
        assert_eq!(
            (vif.bridge.as_deref(), vif.mtu, vif.devid),
            (Some("xenbr0"), Some(9000), Some(3))
        );
        assert_eq!(vif.left_out, ["model=e1000"]);
        assert_eq!(VifSpec::parse("").unwrap(), VifSpec::default());
        for (text, said) in [
            ("mac=00:16:3e", "no address"),
            ("mac=01:16:3e:00:00:01", "multicast"),
            ("mac=00:00:00:00:00:00", "no address"),
            ("mac=00:16:3e:00:00:1g", "no address"),
            ("mtu=9", "mtu=9"),
            ("devid=256", "devid=256"),
            ("bridg=x", "\"bridg\""),
            ("type=ioemu", "HVM"),
        ] {
            let error = VifSpec::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text(text in "(mac=|bridge=|mtu=|00:16:3e:|,| |[0-9a-f:]{1,4}|[ -~]){0,20}") {
            let _ = VifSpec::parse(&text);
        }
    }
}
