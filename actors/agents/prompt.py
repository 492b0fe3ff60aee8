"""What a model is told before the conversation: the agent's own words, then each thing that was asked for."""

from runtime.agent_spec import AgentSpec

TERSE = (
    "Answer tersely, like a caveman who pays by the word: no greeting, no filler, no repetition of the"
    " question, short fragments are fine. Keep every fact, number, name and piece of code exact."
)
TODOS = (
    "Keep the person informed with the update_todos tool: before the first step give the whole list of your"
    " todos, and give it again whenever one begins or is done."
)
FORMATS = {
    "json": "Answer with one JSON value and nothing else: no prose around it, no code fence.",
    "markdown": "Format your answer as Markdown.",
}


def instructions_of(spec: AgentSpec, of_tools: str = "") -> str:
    """The system message of a run. ``of_tools``: what its tools' servers say about themselves."""
    sections = [spec.system.strip()]
    sections += [f"# Skill: {skill.name}\n\n{skill.instructions.strip()}" for skill in spec.skills]
    if spec.memories:
        known = "\n".join(f"- {memory}" for memory in spec.memories)
        sections.append(f"# What you remember from earlier conversations\n\n{known}")
    if of_tools.strip():
        sections.append(of_tools.strip())
    if spec.todos:
        sections.append(TODOS)
    if spec.caveman:
        sections.append(TERSE)
    # With a schema the model is bound to it; the format would only contradict.
    if spec.output_format and spec.output_schema is None:
        sections.append(FORMATS[spec.output_format])
    return "\n\n".join(section for section in sections if section)
