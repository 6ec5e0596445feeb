// SPDX-License-Identifier: LGPL-2.1-or-later
//! What a delegate's policy says: `virt-internal delegate --check` and
//! `--explain`.

use std::path::Path;
use std::process::ExitCode;

use virt_internal::delegate::policy::{Hierarchy, Peer, Policy, Target};

use crate::{Usage, proc};

/// How a peer is written.
pub const PEER: &str = "uid=107,gid=107,cgroup=/PATH[,label=LABEL] or pid=4711[,label=LABEL]";

/// How a target is written.
pub const TARGET: &str = "uid=107,cgroup=/PATH or pid=4711";

/// A summary of a policy that is right; the error says what is wrong.
pub fn check(path: &Path, json: bool) -> crate::Result {
    let policy = Policy::read(path)?;
    let text = match json {
        true => format!("{:#}\n", policy.to_json()),
        false => format!("{}: right\n{policy}", path.display()),
    };
    Ok((text, ExitCode::SUCCESS))
}

/// What would happen if a peer asked for an operation, of a target if one is
/// given. The exit code is that of a failure when it would be refused.
pub fn explain(
    path: &Path,
    peer: &str,
    operation: &str,
    target: Option<&str>,
    json: bool,
) -> crate::Result {
    let policy = Policy::read(path)?;
    let hierarchy = &policy.hierarchy;
    let wrong = |text: &str, expected: &str, why: String| {
        Usage(format!("{text}: {why}: expected {expected}"))
    };
    // What connects shows its effective ids; limits and the like go by the
    // real one.
    let peer = Facts::parse(peer, hierarchy, Id::Effective)
        .and_then(Facts::into_peer)
        .map_err(|why| wrong(peer, PEER, why))?;
    let target = target
        .map(|text| {
            Facts::parse(text, hierarchy, Id::Real)
                .and_then(Facts::into_target)
                .map_err(|why| wrong(text, TARGET, why))
        })
        .transpose()?;
    let target = target
        .as_ref()
        .map(|(uid, cgroup)| Target { uid: *uid, cgroup });
    let (uid, gid, cgroup, label) = &peer;
    let peer = Peer {
        uid: *uid,
        gid: *gid,
        cgroup,
        label: label.as_deref(),
    };
    let explanation = policy.explain(&peer, operation, target).map_err(Usage)?;
    let text = match json {
        true => format!("{:#}\n", explanation.to_json()),
        false => explanation.to_string(),
    };
    let exit_code = match explanation.is_permitted() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    };
    Ok((text, exit_code))
}

/// Which of a process's ids counts.
#[derive(Clone, Copy)]
enum Id {
    Real,
    Effective,
}

/// What is known of a process.
#[derive(Debug, Default, PartialEq)]
struct Facts {
    uid: Option<u32>,
    gid: Option<u32>,
    cgroup: Option<String>,
    label: Option<String>,
}

impl Facts {
    fn parse(text: &str, hierarchy: &Hierarchy, id: Id) -> Result<Facts, String> {
        let mut facts = Facts::default();
        let mut seen = Vec::new();
        for field in text.split(',') {
            let (key, value) = field
                .split_once('=')
                .ok_or_else(|| format!("{field:?} has no ="))?;
            if seen.contains(&key) {
                return Err(format!("{key} is there twice"));
            }
            seen.push(key);
            let number = || {
                value
                    .parse::<u32>()
                    .map_err(|_| format!("{key} is {value:?}, which is no id"))
            };
            match key {
                "uid" => facts.uid = Some(number()?),
                "gid" => facts.gid = Some(number()?),
                "cgroup" if value.starts_with('/') => facts.cgroup = Some(value.to_owned()),
                "cgroup" => return Err(format!("{value:?} is no absolute path")),
                "label" => facts.label = Some(value.to_owned()),
                "pid" => {
                    let (uid, gid, cgroup) = process(number()?, hierarchy, id)?;
                    facts.uid = Some(uid);
                    facts.gid = Some(gid);
                    facts.cgroup = Some(cgroup);
                }
                _ => return Err(format!("{key:?} is not known")),
            }
        }
        match seen.contains(&"pid") && seen.iter().any(|key| *key != "pid" && *key != "label") {
            true => Err("with a pid the other facts are the process's".to_owned()),
            false => Ok(facts),
        }
    }

    fn into_peer(self) -> Result<(u32, u32, String, Option<String>), String> {
        let Facts { uid, gid, .. } = self;
        Ok((
            uid.ok_or("uid is missing")?,
            gid.ok_or("gid is missing")?,
            self.cgroup.ok_or("cgroup is missing")?,
            self.label,
        ))
    }

    fn into_target(self) -> Result<(u32, String), String> {
        match self.label {
            Some(_) => Err("a target has no label".to_owned()),
            None => Ok((
                self.uid.ok_or("uid is missing")?,
                self.cgroup.ok_or("cgroup is missing")?,
            )),
        }
    }
}

/// User id, group id and cgroup of a process.
fn process(pid: u32, hierarchy: &Hierarchy, id: Id) -> Result<(u32, u32, String), String> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        proc::read(&path).map_err(|error| error.to_string())
    };
    let status = read("status")?;
    let column = match id {
        Id::Real => 0,
        Id::Effective => 1,
    };
    let number = |line: &str| {
        let numbers = status.lines().find_map(|text| text.strip_prefix(line))?;
        numbers.split_whitespace().nth(column)?.parse().ok()
    };
    let (uid, gid) = (number("Uid:").zip(number("Gid:")))
        .ok_or_else(|| format!("cannot make sense of /proc/{pid}/status"))?;
    let cgroup = hierarchy
        .path_in(&read("cgroup")?)
        .ok_or_else(|| format!("process {pid} is in no cgroup of hierarchy {hierarchy}"))?
        .to_owned();
    Ok((uid, gid, cgroup))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/policy.toml");

    fn text(result: crate::Result) -> (String, ExitCode) {
        result.unwrap_or_else(|error| panic!("{error}"))
    }

    fn error(result: crate::Result) -> String {
        result.expect_err("an error").to_string()
    }

    #[test]
    fn a_right_policy_is_summarised() {
        let (summary, exit_code) = text(check(EXAMPLE.as_ref(), false));
        assert_eq!(exit_code, ExitCode::SUCCESS);
        assert!(summary.starts_with(EXAMPLE), "{summary}");
        assert!(summary.contains("rule \"virt-launcher\"\n"), "{summary}");
        let (json, _) = text(check(EXAMPLE.as_ref(), true));
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["rules"][1]["name"], "libvirtd");
    }

    #[test]
    fn a_wrong_policy_is_an_error() {
        let error = error(check("/dev/null/policy.toml".as_ref(), false));
        assert!(
            error.starts_with("/dev/null/policy.toml: cannot read"),
            "{error}"
        );
    }

    #[test]
    fn the_exit_code_says_whether_it_would_be_refused() {
        let explain = |operation, target, json| {
            let peer = "uid=107,gid=107,cgroup=/kubepods.slice/x,label=vm-1";
            text(explain(EXAMPLE.as_ref(), peer, operation, target, json))
        };
        let (permitted, exit_code) = explain("process-set-affinity", None, false);
        assert_eq!(exit_code, ExitCode::SUCCESS, "{permitted}");
        let end = "result: permitted by rule \"virt-launcher\", within its bounds\n";
        assert!(permitted.ends_with(end), "{permitted}");
        let target = Some("uid=107,cgroup=/elsewhere");
        let (refused, exit_code) = explain("process-set-affinity", target, true);
        assert_eq!(exit_code, ExitCode::FAILURE, "{refused}");
        let json: serde_json::Value = serde_json::from_str(&refused).expect("JSON");
        assert_eq!(json["refusal"]["about"], "target");
        assert_eq!(json["target"], "uid 107 in /elsewhere");
    }

    #[test]
    fn a_peer_or_target_that_is_not_clear_is_an_error() {
        for (peer, why) in [
            ("", "\"\" has no ="),
            ("uid=1,gid=1", "cgroup is missing"),
            ("uid=1,cgroup=/", "gid is missing"),
            ("gid=1,cgroup=/", "uid is missing"),
            ("uid=1,uid=1", "uid is there twice"),
            ("uid=-1", "uid is \"-1\", which is no id"),
            ("uid=1,gid=1,cgroup=x", "\"x\" is no absolute path"),
            ("udi=1", "\"udi\" is not known"),
            (
                "pid=1,uid=0",
                "with a pid the other facts are the process's",
            ),
            ("pid=4294967295", "cannot read /proc/4294967295/status"),
        ] {
            let error = error(explain(
                EXAMPLE.as_ref(),
                peer,
                "process-set-affinity",
                None,
                false,
            ));
            assert!(error.starts_with(&format!("{peer}: {why}")), "{error}");
            assert!(error.ends_with(PEER), "{error}");
        }
        let peer = "uid=1,gid=1,cgroup=/x";
        let target = Some("uid=1,cgroup=/x,label=a");
        let wrong = explain(
            EXAMPLE.as_ref(),
            peer,
            "process-set-affinity",
            target,
            false,
        );
        assert!(error(wrong).contains("a target has no label"));
        let wrong = explain(EXAMPLE.as_ref(), peer, "process-set-afinity", None, false);
        assert!(error(wrong).contains("there is no operation \"process-set-afinity\""));
    }

    #[test]
    fn a_process_is_known_by_its_pid() {
        let text = format!("pid={},label=vm-1", std::process::id());
        let own = std::fs::read_to_string("/proc/self/cgroup").expect("own cgroups");
        // Whatever hierarchy this machine has.
        let hierarchy = [Hierarchy::V2, Hierarchy::V1("cpu".into())]
            .into_iter()
            .find(|hierarchy| hierarchy.path_in(&own).is_some())
            .expect("a cgroup");
        let facts = Facts::parse(&text, &hierarchy, Id::Effective).expect("own facts");
        // SAFETY: asks for numbers.
        let ids = unsafe { (libc::geteuid(), libc::getegid()) };
        assert_eq!((facts.uid, facts.gid), (Some(ids.0), Some(ids.1)));
        assert_eq!(facts.cgroup.as_deref(), hierarchy.path_in(&own));
        assert_eq!(facts.label.as_deref(), Some("vm-1"));
    }
}
