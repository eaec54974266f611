//! `ova.xml`: the objects of a pool that an XVA archive has, as XML-RPC values.

use anyhow::{Context, Result, ensure};
use roxmltree::{Document, Node};
use std::collections::BTreeMap;

/// An object: a VM, a VBD, a VIF, a VDI, a network.
#[derive(Clone, Debug, Default)]
pub struct Object {
    /// Its class.
    pub class: String,
    /// Its name in the archive, as `Ref:4`.
    pub id: String,
    /// Its fields that are no lists or structures.
    pub fields: BTreeMap<String, String>,
}

impl Object {
    /// A field; an empty one is none.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a field is true.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true"))
    }
}

/// Reads all objects.
///
/// # Errors
/// It is not of this form.
pub fn objects(text: &str) -> Result<Vec<Object>> {
    let document = Document::parse(text).context("ova.xml")?;
    let root = document.root_element();
    ensure!(
        root.tag_name().name() != "appliance",
        "ova.xml is of the first XenServers' format, before xapi's: import it there and export it anew"
    );
    let list = member(root, "objects").context("ova.xml has no objects")?;
    let data = child(list, "array").and_then(|array| child(array, "data"));
    let data = data.context("ova.xml has no list of objects")?;
    let values = data.children().filter(|node| node.has_tag_name("value"));
    values.map(object).collect::<Option<_>>().context("ova.xml has an object that is none")
}

fn object(value: Node<'_, '_>) -> Option<Object> {
    let snapshot = member(value, "snapshot")?;
    let fields = child(snapshot, "struct")?;
    let field = |node| Some((name_of(node)?.to_owned(), text(child(node, "value")?)));
    Some(Object {
        class: text(member(value, "class")?),
        id: text(member(value, "id")?),
        fields: fields.children().filter(|n| n.has_tag_name("member")).filter_map(field).collect(),
    })
}

fn child<'a, 'b>(node: Node<'a, 'b>, name: &str) -> Option<Node<'a, 'b>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn name_of<'a>(member: Node<'a, '_>) -> Option<&'a str> {
    child(member, "name")?.text().map(str::trim)
}

/// The value of a structure's member.
fn member<'a, 'b>(value: Node<'a, 'b>, name: &str) -> Option<Node<'a, 'b>> {
    let fields = child(value, "struct")?;
    let found = fields.children().find(|m| m.has_tag_name("member") && name_of(*m) == Some(name));
    child(found?, "value")
}

/// A simple value: text as it is, or inside of its type.
fn text(value: Node<'_, '_>) -> String {
    match value.first_element_child() {
        None => value.text().unwrap_or_default().trim().to_owned(),
        Some(inner) if matches!(inner.tag_name().name(), "struct" | "array") => String::new(),
        Some(inner) => inner.text().unwrap_or_default().trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read() {
        let text = "<value><struct><member><name>version</name><value><struct/></value></member>\
            <member><name>objects</name><value><array><data><value><struct>\
            <member><name>class</name><value>VM</value></member>\
            <member><name>id</name><value><string>Ref:0</string></value></member>\
            <member><name>snapshot</name><value><struct>\
            <member><name>name_label</name><value>a &amp; b</value></member>\
            <member><name>is_a_template</name><value><boolean>1</boolean></value></member>\
            <member><name>uuid</name><value/></member>\
            <member><name>VBDs</name><value><array><data><value>Ref:1</value></data></array></value></member>\
            </struct></value></member></struct></value></data></array></value></member></struct></value>";
        let objects = objects(text).unwrap();
        let vm = &objects[0];
        assert_eq!(
            (vm.class.as_str(), vm.id.as_str(), vm.get("name_label")),
            ("VM", "Ref:0", Some("a & b"))
        );
        assert!(
            vm.is("is_a_template")
                && !vm.is("none")
                && vm.get("uuid").is_none()
                && vm.get("VBDs").is_none()
        );
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "",
            "<a>",
            "<value/>",
            "<value><struct/></value>",
            "<appliance/>",
            "<!DOCTYPE x [<!ENTITY a \"b\">]><value/>",
        ] {
            assert!(objects(text).is_err(), "{text}");
        }
        let deep = "<value>".repeat(100_000);
        assert!(objects(&deep).is_err());
    }
}
