"""Names of judging protocols as settings read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

__all__ = ["OneOfTheProtocols", "ProtocolName", "known_protocols"]


class OneOfTheProtocols:
    """Reads a name that the table of protocols has, or one of the names in `also`.

    The table is looked at when a name is read: to know a setting, no template need be loaded.
    """

    def __init__(self, *also: str) -> None:
        self._also = also

    @property
    def names(self) -> list[str]:
        """The choices."""
        return [*known_protocols(), *self._also]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._one_of, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": self.names, "type": "string"}

    def _one_of(self, name: object) -> str:
        if isinstance(name, str) and name in self.names:
            return name
        *first, last = [f"'{each}'" for each in self.names]
        expected = f"{', '.join(first)} or {last}"
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})


def known_protocols() -> Mapping[str, Any]:
    """The table of protocols, loaded when it is asked for."""
    from rlaif.judging.table import PROTOCOLS

    return PROTOCOLS


ProtocolName = Annotated[str, OneOfTheProtocols()]
"""How a judge is asked."""
