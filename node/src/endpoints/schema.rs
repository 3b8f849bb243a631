//! The JSON schema of a type, learned from how it is read: the type is made from a source that notes what it
//! is asked for. So the description of an interface cannot differ from what it takes.

use std::collections::BTreeMap;

use serde::de::value::Error;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde_json::{Value, json};

/// A schema, and those of the named types that it refers to.
#[derive(Clone, Debug, Default)]
pub(super) struct Schema {
    pub(super) schema: Value,
    pub(super) named: BTreeMap<String, Value>,
}

pub(super) fn schema_of<T: DeserializeOwned>() -> Schema {
    let mut schema = Schema::default();
    let noting = Noting {
        schema: &mut schema.schema,
        named: &mut schema.named,
    };
    // A type that cannot be made leaves what was noted of it until then.
    let _ = T::deserialize(noting);
    schema
}

struct Noting<'s> {
    schema: &'s mut Value,
    named: &'s mut BTreeMap<String, Value>,
}

impl Noting<'_> {
    fn named(&mut self, name: &str, schema: Value) {
        *self.schema = json!({"$ref": format!("#/components/schemas/{name}")});
        self.named.insert(name.to_owned(), schema);
    }
}

macro_rules! plain {
    ($($method:ident $visit:ident ($($value:expr)?), $schema:tt;)+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            *self.schema = json!($schema);
            visitor.$visit($($value)?)
        })+
    };
}

impl<'de> Deserializer<'de> for Noting<'_> {
    type Error = Error;

    plain! {
        deserialize_any visit_unit (), {};
        deserialize_ignored_any visit_unit (), {};
        deserialize_unit visit_unit (), {"type": "null"};
        deserialize_bool visit_bool (false), {"type": "boolean"};
        deserialize_i8 visit_i8 (0), {"type": "integer"};
        deserialize_i16 visit_i16 (0), {"type": "integer"};
        deserialize_i32 visit_i32 (0), {"type": "integer"};
        deserialize_i64 visit_i64 (0), {"type": "integer"};
        deserialize_u8 visit_u8 (0), {"type": "integer", "minimum": 0};
        deserialize_u16 visit_u16 (0), {"type": "integer", "minimum": 0};
        deserialize_u32 visit_u32 (0), {"type": "integer", "minimum": 0};
        deserialize_u64 visit_u64 (0), {"type": "integer", "minimum": 0};
        deserialize_f32 visit_f32 (0.0), {"type": "number"};
        deserialize_f64 visit_f64 (0.0), {"type": "number"};
        deserialize_char visit_char ('-'), {"type": "string"};
        deserialize_str visit_str (""), {"type": "string"};
        deserialize_string visit_str (""), {"type": "string"};
        deserialize_bytes visit_bytes (&[]), {"type": "string"};
        deserialize_byte_buf visit_bytes (&[]), {"type": "string"};
        deserialize_identifier visit_str (""), {"type": "string"};
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut inner = Value::Null;
        let made = visitor.visit_some(Noting {
            schema: &mut inner,
            named: self.named,
        });
        *self.schema = json!({"anyOf": [inner, {"type": "null"}]});
        made
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut items = [Value::Null];
        let made = visitor.visit_seq(Items {
            schemas: items.iter_mut(),
            named: self.named,
        });
        *self.schema = json!({"type": "array", "items": items[0]});
        made
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut items = vec![Value::Null; length];
        let made = visitor.visit_seq(Items {
            schemas: items.iter_mut(),
            named: self.named,
        });
        *self.schema = json!({
            "type": "array", "prefixItems": items, "minItems": length, "maxItems": length,
        });
        made
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut values = [("key", Value::Null)];
        let made = visitor.visit_map(Fields {
            schemas: values.iter_mut(),
            value: None,
            named: self.named,
        });
        *self.schema = json!({"type": "object", "additionalProperties": values[0].1});
        made
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut schemas: Vec<_> = fields.iter().map(|&field| (field, Value::Null)).collect();
        let made = visitor.visit_map(Fields {
            schemas: schemas.iter_mut(),
            value: None,
            named: self.named,
        });
        let properties: serde_json::Map<String, Value> = schemas
            .into_iter()
            .map(|(field, schema)| (field.to_owned(), schema))
            .collect();
        self.named(name, json!({"type": "object", "properties": properties}));
        made
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.named(name, json!({"type": "string", "enum": variants}));
        visitor.visit_enum(First(variants.first().copied().unwrap_or_default()))
    }
}

struct Items<'s> {
    schemas: std::slice::IterMut<'s, Value>,
    named: &'s mut BTreeMap<String, Value>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(schema) = self.schemas.next() else {
            return Ok(None);
        };
        let named = &mut *self.named;
        seed.deserialize(Noting { schema, named }).map(Some)
    }
}

struct Fields<'s> {
    schemas: std::slice::IterMut<'s, (&'static str, Value)>,
    value: Option<&'s mut Value>,
    named: &'s mut BTreeMap<String, Value>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((name, schema)) = self.schemas.next() else {
            return Ok(None);
        };
        self.value = Some(schema);
        seed.deserialize((*name).into_deserializer()).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let schema = self
            .value
            .take()
            .ok_or_else(|| serde::de::Error::custom("a value without its key"))?;
        let named = &mut *self.named;
        seed.deserialize(Noting { schema, named })
    }
}

/// An enum's first variant. All of ours are plain names.
struct First(&'static str);

impl<'de> EnumAccess<'de> for First {
    type Error = Error;
    type Variant = Plain;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Plain), Error> {
        Ok((seed.deserialize(self.0.into_deserializer())?, Plain))
    }
}

struct Plain;

impl<'de> VariantAccess<'de> for Plain {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(serde::de::Error::custom("no plain name"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(serde::de::Error::custom("no plain name"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        Err(serde::de::Error::custom("no plain name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_tell_their_schema() {
        let found = schema_of::<caje_admin_api::Objects>();
        assert_eq!(found.schema["$ref"], "#/components/schemas/Objects");
        let objects = &found.named["Objects"]["properties"]["objects"];
        assert_eq!(objects["items"]["$ref"], "#/components/schemas/Object");
        let object = &found.named["Object"]["properties"];
        assert_eq!(object["ttl_secs"]["type"], "integer");
        assert_eq!(object["size_bytes"]["anyOf"][1]["type"], "null");
        assert_eq!(found.named["State"]["enum"][1], "stale");
        let ask = schema_of::<caje_admin_api::ExplainRequest>();
        let headers = &ask.named["ExplainRequest"]["properties"]["headers"];
        assert_eq!(headers["items"]["maxItems"], 2);
    }
}
