//! XML from outside, within bounds: no DTD, so no entities but the five; no Id twice; so deep and so large at most.

use std::collections::HashSet;

use base64ct::{Base64, Encoding as _};
use roxmltree::{Document, Node, ParsingOptions};
use zeroize::Zeroizing;

use super::error::ShipmentError;

/// Bytes of a file: half a million meters with two keys each.
pub(super) const BYTES_MAX: usize = 256 << 20;
/// Elements, texts, comments: some 64 bytes of memory each.
const NODES_MAX: u32 = 16_000_000;
/// Levels of elements: shipments have eight. What walks the tree goes so deep into the stack.
const DEPTH_MAX: usize = 32;

/// XML Signature.
pub(super) const DS: &str = "http://www.w3.org/2000/09/xmldsig#";

/// Reads a document, or says where it stops being one.
pub(super) fn parse(text: &str) -> Result<Document<'_>, ShipmentError> {
    if text.len() > BYTES_MAX {
        return Err(ShipmentError::TooLarge { what: "bytes", limit: BYTES_MAX });
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..Default::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| not_xml(&error))?;
    let mut ids = HashSet::new();
    for element in document.descendants().filter(Node::is_element) {
        if element.ancestors().nth(DEPTH_MAX + 1).is_some() {
            return Err(ShipmentError::TooLarge { what: "levels of elements", limit: DEPTH_MAX });
        }
        for attribute in element.attributes() {
            if attribute.name().eq_ignore_ascii_case("id") && !ids.insert(attribute.value()) {
                return Err(ShipmentError::Form { what: "two elements have one Id" });
            }
        }
    }
    Ok(document)
}

/// The parser's own sentences repeat names of the text: they are not passed on.
fn not_xml(error: &roxmltree::Error) -> ShipmentError {
    let (line, column) = (error.pos().row, error.pos().col);
    let what = match error {
        roxmltree::Error::NodesLimitReached => {
            return ShipmentError::TooLarge { what: "elements", limit: NODES_MAX as usize };
        }
        roxmltree::Error::DtdDetected => {
            "it has a DTD (DOCTYPE), which no key file needs and none may have"
        }
        roxmltree::Error::UnknownEntityReference(..) | roxmltree::Error::EntityReferenceLoop(_) => {
            "it has entities of its own, which no key file needs and none may have"
        }
        roxmltree::Error::UnclosedRootNode => "the file was cut: its first element never ends",
        _ => "not well-formed XML",
    };
    ShipmentError::NotXml { what, line, column }
}

/// The child elements, comments and blanks left out. Text beside elements is none that anybody would look for.
pub(super) fn elements<'a, 'i>(node: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(Node::is_element)
}

/// The child elements of a name, whatever their namespace.
pub(super) fn named<'a, 'i>(node: Node<'a, 'i>, name: &str) -> impl Iterator<Item = Node<'a, 'i>> {
    elements(node).filter(move |child| child.tag_name().name() == name)
}

/// The only child element of a name; an error where there are two.
pub(super) fn one<'a, 'i>(
    node: Node<'a, 'i>,
    name: &str,
) -> Result<Option<Node<'a, 'i>>, ShipmentError> {
    let mut all = named(node, name);
    let first = all.next();
    match all.next() {
        Some(_) => Err(ShipmentError::Form { what: "an element that may stand once stands twice" }),
        None => Ok(first),
    }
}

/// The text of an element that has nothing else, without blanks around it.
pub(super) fn text<'a>(node: Node<'a, '_>) -> Result<&'a str, ShipmentError> {
    let form = ShipmentError::Form { what: "an element has parts where a text is due" };
    let mut children = node.children();
    match (children.next(), children.next()) {
        (None, _) => Ok(""),
        (Some(only), None) if only.is_text() => Ok(only.text().unwrap_or_default().trim()),
        _ => Err(form),
    }
}

/// The bytes of a text in Base64, with line breaks or without. For values too: what is made on the way is wiped.
pub(super) fn base64(text: &str) -> Result<Zeroizing<Vec<u8>>, ShipmentError> {
    let mut digits = Zeroizing::new(String::with_capacity(text.len()));
    digits.extend(text.chars().filter(|letter| !letter.is_ascii_whitespace()));
    let decoded = Base64::decode_vec(&digits);
    decoded.map(Zeroizing::new).map_err(|_| ShipmentError::Form { what: "a value is no Base64" })
}
