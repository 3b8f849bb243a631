//! A node's answers as the types of the interface, and its refusals as failures.

use std::cell::RefCell;

use caje_admin_api::{ErrorBody, Unanswered};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::{Code, Failure};
use crate::http::{Answer, Endpoint, encode};
use crate::output::{Format, Shown};
use crate::print;

pub struct Client {
    pub endpoint: Endpoint,
    pub token: Option<String>,
    /// The one node that is asked for.
    pub node: Option<String>,
    /// The one region that is asked for.
    pub region: Option<String>,
    /// Who has not answered, and why.
    pub unanswered: RefCell<Vec<Unanswered>>,
    pub format: Format,
    pub yes: bool,
}

impl Client {
    pub fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, Failure> {
        self.read(self.send("GET", &self.aimed(target), None)?)
    }

    pub fn delete<T: DeserializeOwned>(&self, target: &str) -> Result<T, Failure> {
        self.read(self.send("DELETE", &self.aimed(target), None)?)
    }

    /// A target, about the nodes that are asked for.
    fn aimed(&self, target: &str) -> String {
        let mut aimed = target.to_owned();
        for (name, value) in [("node", &self.node), ("region", &self.region)] {
            if let Some(value) = value {
                let mark = if aimed.contains('?') { '&' } else { '?' };
                aimed.push_str(&format!("{mark}{name}={}", encode(value)));
            }
        }
        aimed
    }

    fn read<T: DeserializeOwned>(&self, answer: Answer) -> Result<T, Failure> {
        let text = answer.text()?;
        let wrong = |error: serde_json::Error| {
            let what = format!("the node's answer is not understood: {error}");
            Failure::error(what, "use the `caje` of the node's own version")
        };
        let value: Value = serde_json::from_str(&text).map_err(wrong)?;
        if let Some(silent) = value.get("unanswered") {
            let silent: Vec<Unanswered> = serde_json::from_value(silent.clone()).map_err(wrong)?;
            *self.unanswered.borrow_mut() = silent;
        }
        serde_json::from_value(value).map_err(wrong)
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
        let target = self.aimed(target);
        self.read(self.send("POST", &target, Some(("application/json", &body)))?)
    }

    pub fn post_text<T: DeserializeOwned>(&self, target: &str, text: &str) -> Result<T, Failure> {
        let target = self.aimed(target);
        self.read(self.send(
            "POST",
            &target,
            Some(("text/plain; charset=utf-8", text.as_bytes())),
        )?)
    }

    pub fn send(
        &self,
        method: &str,
        target: &str,
        body: Option<(&str, &[u8])>,
    ) -> Result<Answer, Failure> {
        let answer = self.ask(method, target, body)?;
        match answer.status {
            200..300 => Ok(answer),
            _ => Err(refused(answer)),
        }
    }

    /// Whatever the answer is.
    pub fn ask(
        &self,
        method: &str,
        target: &str,
        body: Option<(&str, &[u8])>,
    ) -> Result<Answer, Failure> {
        self.endpoint
            .send(method, target, self.token.as_deref(), body)
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
