//! The source's own rules: who may import whom, where `unsafe` may stand, and what no file says.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules of `node`, top first. A module may import those of lower rows, and none of its own row save
/// where it is a child of the importer.
const LAYERS: &[&[&str]] = &[
    &["main", "demo"],
    &["node"],
    &["endpoints"],
    &["talk"],
    &["doctor"],
    &["config"],
    &["proxy", "workers"],
    &["cache"],
    &["peer"],
    &["manifest", "store", "origin"],
    &["cluster", "media"],
    &["semantics", "block", "wire", "telemetry", "clock", "tasks"],
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("reading a source folder") {
        let path = entry.expect("reading a folder's entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources(folder: &str) -> Vec<(String, String)> {
    let root = repository().join(folder);
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).expect("a file below its folder");
            let text = fs::read_to_string(&path).expect("reading a source file");
            (name.to_string_lossy().into_owned(), text)
        })
        .collect()
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// Names of the crate's modules that a file's code mentions after `crate::`.
fn imports(text: &str) -> Vec<&str> {
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| {
            let end = rest
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            &rest[..end]
        })
        .collect()
}

#[test]
fn modules_import_downwards_only() {
    let mut wrong = Vec::new();
    for (file, text) in sources("node/src") {
        let module = file.split(['/', '.']).next().unwrap_or_default();
        if module == "lib" {
            continue;
        }
        let Some(own) = layer_of(module) else {
            wrong.push(format!(
                "{file}: module `{module}` stands in no layer of this test"
            ));
            continue;
        };
        for import in imports(&text) {
            let allowed = import == module || layer_of(import).is_none_or(|layer| layer > own);
            if !allowed {
                wrong.push(format!(
                    "{file}: `{module}` imports `{import}`, which is not below it"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A line of code without what stands between double quotes.
fn without_strings(line: &str) -> String {
    line.split('"').step_by(2).collect::<Vec<_>>().join("")
}

/// Each crate has one place for it: the node's ring, and the duplicate of a lock's descriptor.
#[test]
fn only_two_places_are_unsafe() {
    let keyword = concat!("un", "safe");
    let named = |folder: &'static str| sources(folder).into_iter().map(move |file| (folder, file));
    for (folder, (file, text)) in named("node/src").chain(named("litefs/src")) {
        let allowed = match folder {
            "node/src" => file == "store/io.rs" || file.starts_with("store/io/"),
            _ => file == "descriptor.rs",
        };
        let found = text.lines().any(|line| {
            let code = without_strings(line);
            let code = code.split("//").next().unwrap_or_default();
            code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .any(|word| word == keyword)
        });
        assert!(allowed || !found, "{folder}/{file} contains {keyword} code");
    }
}

#[test]
fn names_that_say_nothing_are_not_used() {
    for folder in [
        "node/src",
        "admin/src",
        "admin_api/src",
        "litefs/src",
        "slow_server/src",
        "tests",
    ] {
        for (file, _) in sources(folder) {
            for name in ["utils", "common", "types", "helpers", "misc", "mod"] {
                assert!(
                    !file.split(['/', '.']).any(|part| part == name),
                    "{folder}/{file}: `{name}` says nothing"
                );
            }
        }
    }
}

/// The proxy sees answers and bytes, not where they lie.
#[test]
fn the_proxy_knows_neither_store_nor_origin_pools() {
    for (file, text) in sources("node/src") {
        if file == "proxy.rs" || file.starts_with("proxy/") {
            assert!(
                !imports(&text).contains(&"store"),
                "{file} imports the store"
            );
        }
    }
}
