//! Stories as text or JSON.

use serde_json::{Map, Value, json};

use super::Story;
use crate::table::images::{printable, shortened};

/// Nodes that are named; the rest are counted.
const NODES_NAMED: usize = 5;

/// Each story under a line that says what it is about.
pub fn render_why(stories: &[Story]) -> String {
    let blocks = stories.iter().map(|story| {
        let namespace = match story.namespace.as_str() {
            "" => String::new(),
            namespace => format!(" ({})", printable(namespace)),
        };
        let mut block =
            format!("{}{namespace}{}\n", shortened(&printable(&story.image)), on(&story.nodes));
        for (heading, text) in &story.facts {
            block.push_str(&format!("  {heading:12}{text}\n"));
        }
        block
    });
    blocks.collect::<Vec<_>>().join("\n")
}

fn on(nodes: &[String]) -> String {
    let named: Vec<String> = nodes.iter().take(NODES_NAMED).map(|node| printable(node)).collect();
    match nodes.len() {
        0 => String::new(),
        count if count > NODES_NAMED => {
            format!(" on {} and {} more nodes", named.join(", "), count - NODES_NAMED)
        }
        _ => format!(" on {}", named.join(", ")),
    }
}

/// A JSON array with one object for each story.
pub fn render_why_json(stories: &[Story]) -> String {
    let stories: Vec<Value> = stories
        .iter()
        .map(|story| {
            let facts: Map<String, Value> = story
                .facts
                .iter()
                .map(|(heading, text)| ((*heading).to_owned(), json!(text)))
                .collect();
            json!({
                "image": story.image,
                "namespace": story.namespace,
                "nodes": story.nodes,
                "ready": story.is_ready,
                "facts": facts,
            })
        })
        .collect();
    format!("{:#}\n", Value::from(stories))
}
