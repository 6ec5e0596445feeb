// SPDX-License-Identifier: LGPL-2.1-or-later
//! Writes XML as libvirt prints it: two spaces a level, single quotes.

pub struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Element>,
    text: Option<String>,
}

impl Element {
    pub fn new(name: &'static str) -> Element {
        Element {
            name,
            attributes: Vec::new(),
            children: Vec::new(),
            text: None,
        }
    }

    pub fn attribute(mut self, name: &'static str, value: impl ToString) -> Element {
        self.attributes.push((name, value.to_string()));
        self
    }

    pub fn children(mut self, children: impl IntoIterator<Item = Element>) -> Element {
        self.children.extend(children);
        self
    }

    /// The text of an element that has no children.
    pub fn text(mut self, text: &str) -> Element {
        self.text = Some(text.to_owned());
        self
    }

    /// The element, so many levels deep.
    pub fn to_text(&self, level: usize) -> String {
        let (indent, name) = ("  ".repeat(level), self.name);
        let mut text = format!("{indent}<{name}");
        for (name, value) in &self.attributes {
            text += &format!(" {name}='{}'", escape(value));
        }
        match &self.text {
            Some(content) => text + &format!(">{}</{name}>\n", escape(content)),
            None if self.children.is_empty() => text + "/>\n",
            None => {
                let children = self.children.iter().map(|child| child.to_text(level + 1));
                text + ">\n" + &children.collect::<String>() + &format!("{indent}</{name}>\n")
            }
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&apos;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_xml_is_escaped() {
        let element = Element::new("a").attribute("b", "<'&\">");
        assert_eq!(element.to_text(0), "<a b='&lt;&apos;&amp;&quot;&gt;'/>\n");
        let element = Element::new("a").children([Element::new("b").text("1 < 2")]);
        assert_eq!(element.to_text(0), "<a>\n  <b>1 &lt; 2</b>\n</a>\n");
    }
}
