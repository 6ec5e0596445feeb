// SPDX-License-Identifier: LGPL-2.1-or-later
//! `virt-internal capabilities`: what could be done directly here, and what it
//! would take. It is found out by doing it, to processes of the command's own.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::cgroup::{Hierarchy, Version};
use crate::host::Host;
use crate::library::{DIRECT, Failure, Outcome, forget_delegate};
use crate::operation::{Entry, Trial, operations, short_name};
use crate::privilege::{Kind, Missing};
use crate::table::{Table, Tone, paint};
use crate::target::User;
use crate::xml::Element;

/// Show which operations there are, and which of them work directly here
#[derive(Args)]
pub struct Capabilities {
    /// Print JSON
    #[arg(long, conflicts_with = "xml")]
    json: bool,
    /// Print XML, in the manner of libvirt's capabilities
    #[arg(long)]
    xml: bool,
}

struct Report {
    host: Host,
    operations: Vec<Operation>,
}

struct Operation {
    kind: &'static virt_internal::Kind,
    tried: Vec<Tried>,
}

struct Tried {
    name: &'static str,
    user: User,
    result: Finding,
}

/// Whether something works.
enum Finding {
    Yes,
    No(Option<Failure>, Option<Missing>),
    /// It could not be tried.
    Unknown(Missing),
}

impl Capabilities {
    pub fn run(&self) -> crate::Result {
        // What is reported is what this process may do itself.
        // SAFETY: there is no other thread, and the library was not used yet.
        unsafe { forget_delegate() };
        let report = Report {
            host: Host::probe()?,
            operations: operations().iter().map(try_out).collect::<Result<_, _>>()?,
        };
        let text = if self.json {
            format!("{:#}\n", report.to_json())
        } else if self.xml {
            report.to_xml().to_text(0)
        } else {
            report.to_text()
        };
        Ok((text, ExitCode::SUCCESS))
    }
}

fn try_out(entry: &Entry) -> Result<Operation, Box<dyn std::error::Error>> {
    let tried = (entry.trials)()
        .into_iter()
        .map(|Trial { name, user, stage }| {
            let result = match stage {
                Ok(stage) => {
                    let request = stage.requests.as_ref();
                    match Outcome::of(request.call(DIRECT)) {
                        Outcome::Failed(failure) => {
                            let missing = request.missing(failure.errnum);
                            Finding::No(Some(failure), missing)
                        }
                        // The kernel has the last word.
                        _ => match request.state()? {
                            state if state.as_asked => Finding::Yes,
                            state => {
                                let text = state.text;
                                return Err(format!("{request}: done, but it says {text}").into());
                            }
                        },
                    }
                }
                Err(missing) if matches!(missing.kind, Kind::Absent | Kind::Trial) => {
                    Finding::Unknown(missing)
                }
                Err(missing) => Finding::No(None, Some(missing)),
            };
            Ok(Tried { name, user, result })
        })
        .collect::<Result<_, Box<dyn std::error::Error>>>()?;
    Ok(Operation {
        kind: entry.kind,
        tried,
    })
}

impl Operation {
    /// In one word, whether it works directly.
    fn direct(&self) -> (Tone, &'static str) {
        let yes = self
            .tried
            .iter()
            .any(|tried| matches!(tried.result, Finding::Yes));
        let no = self.tried.iter().any(|tried| match tried.result {
            Finding::Yes => false,
            Finding::No(..) => true,
            // Whoever cannot even start another user's process.
            Finding::Unknown(_) => tried.user == User::Other,
        });
        match (yes, no) {
            (true, false) => (Tone::Good, "yes"),
            (true, true) => (Tone::Missing, "partly"),
            (false, true) => (Tone::Missing, "no"),
            (false, false) => (Tone::Plain, "unknown"),
        }
    }
}

impl Tried {
    fn target(&self) -> &'static str {
        match self.user {
            User::Own => "own-uid",
            User::Other | User::Guest => "other-uid",
        }
    }

    fn supported(&self) -> &'static str {
        match self.result {
            Finding::Yes => "yes",
            Finding::No(..) => "no",
            Finding::Unknown(_) => "unknown",
        }
    }

    fn errno(&self) -> Option<String> {
        match &self.result {
            Finding::No(Some(failure), _) => Some(format!("{:?}", failure.errnum)),
            _ => None,
        }
    }

    fn missing(&self) -> Option<&Missing> {
        match &self.result {
            Finding::Yes => None,
            Finding::No(_, missing) => missing.as_ref(),
            Finding::Unknown(missing) => Some(missing),
        }
    }
}

fn version(hierarchy: &Hierarchy) -> u32 {
    match hierarchy.version {
        Version::V1 => 1,
        Version::V2 => 2,
    }
}

fn yes_or_no(yes: bool) -> &'static str {
    match yes {
        true => "yes",
        false => "no",
    }
}

fn object(entries: impl Iterator<Item = (impl ToString, bool)>) -> Value {
    entries
        .map(|(name, has)| (name.to_string(), Value::from(has)))
        .collect()
}

impl Report {
    fn to_text(&self) -> String {
        let host = &self.host;
        let features = host
            .features
            .map(|(name, has)| format!("{name}: {}", yes_or_no(has)));
        let mut table = Table::new(&[
            "OPERATION",
            "VERSION",
            "DIRECTLY",
            "TRIED",
            "TARGET",
            "RESULT",
        ]);
        for operation in &self.operations {
            for (index, tried) in operation.tried.iter().enumerate() {
                let first = |text: String| match index {
                    0 => text,
                    _ => String::new(),
                };
                let (tone, direct) = operation.direct();
                table.add(vec![
                    (Tone::Heading, first(short_name(operation.kind).to_owned())),
                    (Tone::Plain, first(operation.kind.version.to_string())),
                    (tone, first(direct.to_owned())),
                    (Tone::Plain, tried.name.to_owned()),
                    (Tone::Plain, tried.target().to_owned()),
                    tried.describe(),
                ]);
            }
        }
        format!(
            "{}\n{}\ncgroups: {}\n\n{table}{}",
            host.summary(),
            features.join(", "),
            self.hierarchies(),
            self.hints()
        )
    }

    fn hierarchies(&self) -> String {
        let hierarchies: Vec<String> = self
            .host
            .hierarchies
            .iter()
            .map(|hierarchy| match hierarchy.version {
                Version::V1 => format!("v1 {}", hierarchy.controllers),
                Version::V2 => format!("v2 at {}", hierarchy.mount.display()),
            })
            .collect();
        match hierarchies.is_empty() {
            true => "none".into(),
            false => hierarchies.join(", "),
        }
    }

    fn hints(&self) -> String {
        let needs = self.needs();
        if needs.is_empty() {
            return String::new();
        }
        let heading = paint(Tone::Heading, "WHAT IS MISSING, AND HOW TO GET IT");
        let mut text = format!("\n{heading}\n");
        for missing in needs {
            text += &format!("{}\n", paint(Tone::Missing, &missing.what));
            for hint in missing.hints {
                text += &format!("  {hint}\n");
            }
        }
        text
    }

    /// What is missing, each thing once.
    fn needs(&self) -> Vec<Missing> {
        let mut needs: Vec<Missing> = Vec::new();
        let all = self
            .operations
            .iter()
            .flat_map(|operation| &operation.tried);
        for missing in all.filter_map(|tried| match &tried.result {
            Finding::No(_, missing) => missing.as_ref(),
            Finding::Yes | Finding::Unknown(_) => None,
        }) {
            match needs.iter_mut().find(|known| known.what == missing.what) {
                Some(known) => {
                    for hint in &missing.hints {
                        if !known.hints.contains(hint) {
                            known.hints.push(hint.clone());
                        }
                    }
                }
                None => needs.push(missing.clone()),
            }
        }
        needs
    }

    fn to_json(&self) -> Value {
        let host = &self.host;
        let cgroup = |hierarchy: &Hierarchy| {
            json!({
                "version": version(hierarchy),
                "controllers": hierarchy.controllers,
                "mount": hierarchy.mount,
                "group": hierarchy.group,
            })
        };
        let tried = |tried: &Tried| {
            json!({
                "name": tried.name,
                "target": tried.target(),
                "supported": tried.supported(),
                "errno": tried.errno(),
                "missing": tried.missing().map(Missing::to_json),
            })
        };
        let operation = |operation: &Operation| {
            json!({
                "id": operation.kind.id,
                "name": operation.kind.name,
                "version": operation.kind.version,
                "direct": operation.direct().1,
                "tried": operation.tried.iter().map(tried).collect::<Vec<_>>(),
            })
        };
        json!({
            "library": { "version": host.library },
            "kernel": {
                "release": host.kernel,
                "features": object(host.features.iter().map(|(name, has)| (name, *has))),
                "cgroups": host.hierarchies.iter().map(cgroup).collect::<Vec<_>>(),
            },
            "process": {
                "uid": host.uid,
                "initial_user_namespace": host.initial_user_namespace,
                "capabilities": object(host.capabilities.iter().map(|(name, has)| (name, *has))),
            },
            "operations": self.operations.iter().map(operation).collect::<Vec<_>>(),
        })
    }

    fn to_xml(&self) -> Element {
        let host = &self.host;
        let supported = |name, what: &dyn ToString, has| {
            Element::new(name)
                .attribute("name", what.to_string())
                .attribute("supported", yes_or_no(has))
        };
        let cgroup = |hierarchy: &Hierarchy| {
            let element = Element::new("cgroup").attribute("version", version(hierarchy));
            let element = match hierarchy.version {
                Version::V1 => element.attribute("controllers", &hierarchy.controllers),
                Version::V2 => element,
            };
            element.children([
                Element::new("mount").text(&hierarchy.mount.to_string_lossy()),
                Element::new("path").text(&hierarchy.group.to_string_lossy()),
            ])
        };
        let operation = |operation: &Operation| {
            Element::new("operation")
                .attribute("name", operation.kind.name)
                .attribute("id", operation.kind.id)
                .attribute("version", operation.kind.version)
                .attribute("direct", operation.direct().1)
                .children(operation.tried.iter().map(Tried::to_xml))
        };
        let features = host.features.iter();
        let capabilities = host.capabilities.iter();
        Element::new("capabilities").children([
            Element::new("library").attribute("version", host.library),
            Element::new("kernel")
                .attribute("release", &host.kernel)
                .children(features.map(|(name, has)| supported("feature", name, *has)))
                .children(host.hierarchies.iter().map(cgroup)),
            Element::new("process")
                .attribute("uid", host.uid)
                .attribute("initialuserns", yes_or_no(host.initial_user_namespace))
                .children(capabilities.map(|(name, has)| supported("capability", name, *has))),
            Element::new("operations").children(self.operations.iter().map(operation)),
        ])
    }
}

impl Tried {
    fn describe(&self) -> (Tone, String) {
        match &self.result {
            Finding::Yes => (Tone::Good, "yes".into()),
            Finding::No(failure, missing) => {
                let errno = failure
                    .iter()
                    .map(|failure| format!("{:?}", failure.errnum));
                let text: Vec<String> = errno.chain(missing.iter().map(Missing::needs)).collect();
                (Tone::Missing, format!("no: {}", text.join(", ")))
            }
            Finding::Unknown(missing) => (Tone::Plain, format!("not tried: {}", missing.needs())),
        }
    }

    fn to_xml(&self) -> Element {
        let element = Element::new("try")
            .attribute("name", self.name)
            .attribute("target", self.target())
            .attribute("supported", self.supported());
        let element = match self.errno() {
            Some(errno) => element.attribute("errno", errno),
            None => element,
        };
        element.children(self.missing().map(|missing| {
            Element::new("missing")
                .attribute("type", missing.kind)
                .attribute("name", &missing.what)
                .children(
                    missing
                        .hints
                        .iter()
                        .map(|hint| Element::new("hint").text(hint)),
                )
        }))
    }
}
