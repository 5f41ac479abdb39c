//! Canonical XML 1.0 of an element and all below it, inclusive and exclusive, without comments: the bytes that are
//! signed.
//!
//! Ours, since those of crates.io come with parsers, curves and ciphers of their own. Held against Debian's `xmllint`
//! and `xmlsec1` by the files in `tests/shipments`. What the specification has beyond one element and all below it
//! (node sets by XPath, comments) is refused where it is asked for.

use std::collections::BTreeMap;

use roxmltree::{Attribute, Node, NodeType};

use super::error::ShipmentError;

const XML: &str = "http://www.w3.org/XML/1998/namespace";

/// One of the two ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Canonical {
    /// With the namespaces in scope.
    Inclusive,
    /// With those that are used, and of these prefixes (`#default` is the empty one) as inclusive.
    Exclusive(Vec<String>),
}

impl Canonical {
    /// By its identifier; the prefixes of an exclusive one come from its own element.
    pub(super) fn of(algorithm: &str) -> Option<Self> {
        match algorithm {
            "http://www.w3.org/TR/2001/REC-xml-c14n-20010315" => Some(Self::Inclusive),
            "http://www.w3.org/2001/10/xml-exc-c14n#" => Some(Self::Exclusive(Vec::new())),
            _ => None,
        }
    }
}

/// Prefix to namespace; the empty prefix is the default one.
type Namespaces<'a> = BTreeMap<&'a str, &'a str>;

/// The bytes of `apex`, without `left_out` and what is below it.
pub(super) fn canonicalize(
    apex: Node<'_, '_>,
    left_out: Option<Node<'_, '_>>,
    how: &Canonical,
) -> Result<Vec<u8>, ShipmentError> {
    // They would have to be carried down to the apex; no signature that was seen needs it.
    let above = apex.ancestors().skip(1).flat_map(|node| node.attributes());
    if above.into_iter().any(|attribute| attribute.namespace() == Some(XML)) {
        return Err(ShipmentError::Form { what: "xml: attributes stand above what is signed" });
    }
    let mut writer = Writer { out: Vec::new(), how, left_out };
    writer.element(apex, &Namespaces::new())?;
    Ok(writer.out)
}

struct Writer<'w, 'a, 'i> {
    out: Vec<u8>,
    how: &'w Canonical,
    left_out: Option<Node<'a, 'i>>,
}

impl Writer<'_, '_, '_> {
    /// As deep as the document, whose levels [`super::xml::parse`] has counted.
    fn element(
        &mut self,
        node: Node<'_, '_>,
        rendered: &Namespaces<'_>,
    ) -> Result<(), ShipmentError> {
        let name = qualified_name(node)?;
        self.put("<");
        self.put(name);
        let in_scope = in_scope(node);
        let mut rendered = rendered.clone();
        for prefix in self.wanted(node, name, &in_scope, &rendered) {
            let uri = in_scope.get(prefix).copied().unwrap_or_default();
            if rendered.get(prefix).copied().unwrap_or_default() == uri {
                continue;
            }
            self.put(if prefix.is_empty() { " xmlns" } else { " xmlns:" });
            self.put(prefix);
            self.value(uri);
            rendered.insert(prefix, uri);
        }
        let mut attributes: Vec<Attribute<'_, '_>> = node.attributes().collect();
        attributes.sort_by_key(|it| (it.namespace().unwrap_or_default(), it.name()));
        for attribute in attributes {
            let range = attribute.range_qname();
            let name = node.document().input_text().get(range).unwrap_or_default();
            self.put(" ");
            self.put(name);
            self.value(attribute.value());
        }
        self.put(">");
        let left_out = self.left_out;
        for child in node.children().filter(|child| Some(*child) != left_out) {
            match child.node_type() {
                NodeType::Element => self.element(child, &rendered)?,
                NodeType::Text => self.text(child.text().unwrap_or_default()),
                NodeType::PI => self.instruction(child),
                NodeType::Comment | NodeType::Root => {}
            }
        }
        self.put("</");
        self.put(name);
        self.put(">");
        Ok(())
    }

    /// Prefixes that this element may have to declare, in their order.
    fn wanted<'n>(
        &self,
        node: Node<'n, '_>,
        name: &'n str,
        in_scope: &Namespaces<'n>,
        rendered: &Namespaces<'n>,
    ) -> Vec<&'n str> {
        let prefix = |name: &'n str| name.split_once(':').map_or("", |(prefix, _)| prefix);
        let mut wanted: Vec<&str> = match self.how {
            // The empty one too, where it was another one above and is none here.
            Canonical::Inclusive => in_scope.keys().copied().chain([""]).collect(),
            Canonical::Exclusive(listed) => {
                let text = node.document().input_text();
                let names =
                    node.attributes().filter_map(|it| text.get(it.range_qname()).map(prefix));
                let used = names.filter(|prefix| !prefix.is_empty()).chain([prefix(name)]);
                let is_listed = |known: &&str| {
                    let known = if known.is_empty() { "#default" } else { known };
                    listed.iter().any(|listed| listed == known)
                };
                let listed = in_scope.keys().chain(rendered.keys()).copied().filter(is_listed);
                used.chain(listed).collect()
            }
        };
        wanted.retain(|prefix| *prefix != "xml");
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn value(&mut self, value: &str) {
        self.put("=\"");
        for letter in value.chars() {
            match letter {
                '&' => self.put("&amp;"),
                '<' => self.put("&lt;"),
                '"' => self.put("&quot;"),
                '\t' => self.put("&#x9;"),
                '\n' => self.put("&#xA;"),
                '\r' => self.put("&#xD;"),
                other => self.put(other.encode_utf8(&mut [0; 4])),
            }
        }
        self.put("\"");
    }

    fn text(&mut self, text: &str) {
        for letter in text.chars() {
            match letter {
                '&' => self.put("&amp;"),
                '<' => self.put("&lt;"),
                '>' => self.put("&gt;"),
                '\r' => self.put("&#xD;"),
                other => self.put(other.encode_utf8(&mut [0; 4])),
            }
        }
    }

    fn instruction(&mut self, node: Node<'_, '_>) {
        let Some(instruction) = node.pi() else { return };
        self.put("<?");
        self.put(instruction.target);
        if let Some(value) = instruction.value.filter(|value| !value.is_empty()) {
            self.put(" ");
            self.put(value);
        }
        self.put("?>");
    }
}

fn in_scope<'a>(node: Node<'a, '_>) -> Namespaces<'a> {
    node.namespaces().map(|it| (it.name().unwrap_or_default(), it.uri())).collect()
}

/// The name as it is written: two prefixes may stand for one namespace, and the tree keeps neither.
fn qualified_name<'a>(node: Node<'a, '_>) -> Result<&'a str, ShipmentError> {
    let text = node.document().input_text().get(node.range()).unwrap_or_default();
    let name = text.strip_prefix('<').unwrap_or_default();
    let end = name.find(|letter: char| letter.is_ascii_whitespace() || "/>".contains(letter));
    let name = name.get(..end.unwrap_or_default()).unwrap_or_default();
    if name.is_empty() {
        return Err(ShipmentError::Form { what: "an element has no name" });
    }
    Ok(name)
}
