//! A node's answers as the types of the interface, and its refusals as failures.

use caje_admin_api::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::{Code, Failure};
use crate::http::{Answer, Endpoint};
use crate::output::{Format, Shown};
use crate::print;

pub struct Client {
    pub endpoint: Endpoint,
    pub token: Option<String>,
    /// The one node that is asked for.
    pub node: Option<String>,
    pub format: Format,
    pub yes: bool,
}

impl Client {
    pub fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, Failure> {
        read(self.send("GET", target, None)?)
    }

    pub fn delete<T: DeserializeOwned>(&self, target: &str) -> Result<T, Failure> {
        read(self.send("DELETE", target, None)?)
    }

    /// With a body of JSON.
    pub fn post<T: DeserializeOwned>(
        &self,
        target: &str,
        ask: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(ask).map_err(|error| {
            Failure::error(
                format!("the request cannot be written: {error}"),
                "report this",
            )
        })?;
        read(self.send("POST", target, Some(("application/json", &body)))?)
    }

    pub fn post_text<T: DeserializeOwned>(&self, target: &str, text: &str) -> Result<T, Failure> {
        read(self.send(
            "POST",
            target,
            Some(("text/plain; charset=utf-8", text.as_bytes())),
        )?)
    }

    pub fn send(
        &self,
        method: &str,
        target: &str,
        body: Option<(&str, &[u8])>,
    ) -> Result<Answer, Failure> {
        let answer = self
            .endpoint
            .send(method, target, self.token.as_deref(), body)?;
        match answer.status {
            200..300 => Ok(answer),
            _ => Err(refused(answer)),
        }
    }

    /// Only what is of the node that was asked for.
    pub fn of_node<T>(&self, all: Vec<T>, name: impl Fn(&T) -> &str) -> Result<Vec<T>, Failure> {
        let Some(wanted) = &self.node else {
            return Ok(all);
        };
        let known: Vec<String> = all.iter().map(|item| name(item).to_owned()).collect();
        let own: Vec<T> = all
            .into_iter()
            .filter(|item| name(item) == wanted)
            .collect();
        if own.is_empty() && !known.is_empty() {
            let what = format!("no node is called `{wanted}`");
            return Err(Failure::new(
                Code::NotFound,
                what,
                format!("take one of: {}", known.join(", ")),
            ));
        }
        Ok(own)
    }

    /// Prints an answer: `rows` are what a line is made of.
    pub fn show<T: Serialize, R: Serialize>(
        &self,
        all: &T,
        rows: &[R],
        table: impl FnOnce() -> String,
    ) {
        let value = |value: Result<Value, _>| value.unwrap_or(Value::Null);
        let shown = Shown {
            json: value(serde_json::to_value(all)),
            rows: rows
                .iter()
                .map(|row| value(serde_json::to_value(row)))
                .collect(),
            table: match self.format {
                Format::Table => table(),
                _ => String::new(),
            },
        };
        print(&shown.text(self.format));
    }
}

fn read<T: DeserializeOwned>(answer: Answer) -> Result<T, Failure> {
    let text = answer.text()?;
    serde_json::from_str(&text).map_err(|error| {
        let what = format!("the node's answer is not understood: {error}");
        Failure::error(what, "use the `caje` of the node's own version")
    })
}

fn refused(answer: Answer) -> Failure {
    let status = answer.status;
    let code = match status {
        400 | 422 => Code::Usage,
        404 => Code::NotFound,
        _ => Code::Error,
    };
    let text = answer.text().unwrap_or_default();
    match serde_json::from_str::<ErrorBody>(&text) {
        Ok(body) => Failure::new(code, body.error.message, body.error.remedy),
        Err(_) if status == 404 => Failure::new(
            Code::Error,
            "what answers has nothing at this path",
            "point --endpoint to a node's admin listener; by a public port it takes `admin.public` and a token",
        ),
        Err(_) => Failure::new(
            code,
            format!("what answers is no node of caje: status {status}"),
            "point --endpoint to a node's admin listener",
        ),
    }
}
