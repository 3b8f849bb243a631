//! `/_caje/openapi.json`: the table of endpoints in OpenAPI's words.

use std::collections::BTreeMap;

use caje_admin_api::ErrorBody;
use serde_json::{Map, Value, json};

use super::Endpoint;
use super::schema::schema_of;

pub(super) fn document(table: &[Endpoint]) -> Value {
    let mut named: BTreeMap<String, Value> = schema_of::<ErrorBody>().named;
    let mut paths: Map<String, Value> = Map::new();
    for endpoint in table {
        for schema in [&endpoint.query, &endpoint.ask, &endpoint.answer]
            .into_iter()
            .flatten()
        {
            named.extend(schema.named.clone());
        }
        let methods = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        let method = endpoint.method.as_str().to_ascii_lowercase();
        methods[method] = operation(endpoint);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "caje",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What operators see and steer of caje's nodes. Every answer of 400 and above says what is \
                            wrong and what to try.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": named,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let fault = json!({
        "description": "What is wrong, and what to try",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
    });
    let mut done = json!({"description": "Done"});
    if let Some(answer) = &endpoint.answer {
        done["content"] = json!({"application/json": {"schema": answer.schema}});
    }
    let mut operation = json!({
        "summary": endpoint.summary,
        "responses": {},
    });
    let status = if endpoint.begins { "202" } else { "200" };
    operation["responses"][status] = done;
    let mut parameters: Vec<Value> = Vec::new();
    for segment in endpoint.path.split('/') {
        if let Some(name) = segment
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
        {
            parameters.push(json!({
                "name": name, "in": "path", "required": true, "schema": {"type": "string"},
            }));
        }
    }
    if let Some(query) = &endpoint.query {
        let fields = query
            .named
            .values()
            .find_map(|schema| schema["properties"].as_object());
        for (name, schema) in fields.into_iter().flatten() {
            parameters.push(json!({"name": name, "in": "query", "schema": schema}));
        }
    }
    let mut of_query = |name: &str, is_required: bool| {
        parameters.push(json!({
            "name": name, "in": "query", "required": is_required, "schema": {"type": "string"},
        }));
    };
    for (name, is_required) in endpoint.parameters {
        of_query(name, *is_required);
    }
    // Which nodes are asked.
    if endpoint.over.is_some() {
        for name in ["scope", "node", "region"] {
            of_query(name, false);
        }
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(ask) = &endpoint.ask {
        operation["requestBody"] = json!({"content": {"application/json": {"schema": ask.schema}}});
    }
    if let Some(scope) = endpoint.scope {
        let scopes = match endpoint.takes_any_token {
            true => json!([]),
            false => json!([scope.as_str()]),
        };
        operation["security"] = json!([{"token": scopes}]);
        operation["responses"]["default"] = fault;
    }
    operation
}
