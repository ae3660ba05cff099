"""Chat templates of public families, written from their rules: what each says, and with what Jinja it says it.

Each is (template, special words, words for bos and eos).
"""

LLAMA3 = r"""{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set said, messages = messages[0]['content'] | trim, messages[1:] %}
{%- else %}{%- set said = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
{{- "Cutting Knowledge Date: December 2023\nToday Date: " + date_string + "\n\n" + said + "<|eot_id|>" }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\n\n" + message.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}{%- endif %}
"""

QWEN2_5 = r"""{%- if tools %}
    {{- "<|im_start|>system\n# Tools\n" }}
    {%- for tool in tools %}{{- "\n" + tool | tojson(ensure_ascii=False) }}{%- endfor %}
    {{- "<|im_end|>\n" }}
{%- elif messages[0].role != "system" %}
    {{- "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role in ("user", "system") or (message.role == "assistant" and not message.tool_calls) %}
        {{- "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>" + "\n" }}
    {%- elif message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}{{- "<|im_start|>user" }}{%- endif %}
        {{- "\n<tool_response>\n" + message.content + "\n</tool_response>" }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- "<|im_end|>\n" }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{%- endif %}
"""

QWEN3 = r"""{%- if messages[0].role == "system" %}
    {{- "<|im_start|>system\n" + messages[0].content + "<|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(seeking=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.seeking and message.role == "user" and message.content is string and not (
        message.content.startswith("<tool_response>") and message.content.endswith("</tool_response>")) %}
        {%- set ns.seeking = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else "" %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- "<|im_start|>" + message.role + "\n" + content + "<|im_end|>" + "\n" }}
    {%- elif message.role == "assistant" %}
        {%- set thought = "" %}
        {%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
        {%- elif "</think>" in content %}
            {%- set thought = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n") %}
            {%- set content = content.split("</think>")[-1].lstrip("\n") %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {%- set content = "<think>\n" + thought.strip("\n") + "\n</think>\n\n" + content.lstrip("\n") %}
        {%- endif %}
        {{- "<|im_start|>assistant\n" + content + "<|im_end|>\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- "<think>\n\n</think>\n\n" }}{%- endif %}
{%- endif %}
"""

SMOLLM2 = r"""{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""

SMOLLM3 = r"""{%- set thinks = enable_thinking if enable_thinking is defined else true %}
{%- set said = messages[0].content if messages[0].role == "system" else "" %}
{%- if "/no_think" in said %}{%- set thinks = false %}{%- endif %}
{{- "<|im_start|>system\n## Metadata\n\nToday Date: " + strftime_now("%d %B %Y") + "\nReasoning Mode: " }}
{{- ("/think" if thinks else "/no_think") + "\n\n" + said.replace("/no_think", "").rstrip() + "<|im_end|>\n" }}
{%- for message in messages %}
    {%- if message.role == "user" %}{{- "<|im_start|>user\n" + message.content + "<|im_end|>\n" }}
    {%- elif message.role == "assistant" %}
        {%- generation %}
        {{- "<|im_start|>assistant\n" + ("" if thinks else "<think>\n\n</think>\n") + message.content.lstrip("\n") }}
        {{- "<|im_end|>\n" }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\n" + ("" if thinks else "<think>\n\n</think>\n") }}
{%- endif %}
"""

MISTRAL = r"""{%- if messages[0]["role"] == "system" %}
    {%- set said = messages[0]["content"] %}{%- set turns = messages[1:] %}
{%- else %}{%- set turns = messages %}{%- endif %}
{%- set asked = turns | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in turns %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and message == asked[-1] %}
            {{- "[AVAILABLE_TOOLS] " + tools | tojson + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and said is defined %}{{- "[INST] " + said + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

GEMMA2 = r"""{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}
"""

GEMMA3 = r"""{{- bos_token }}
{%- set prefix, turns = "", messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set parts = messages[0]['content'] %}
    {%- set prefix = (parts if parts is string else parts[0]['text']) + '\n\n' %}{%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}
    {{- prefix if loop.first else '' }}
    {%- if message['content'] is string %}{{- message['content'] | trim }}
    {%- elif message['content'] is iterable %}
        {%- for item in message['content'] %}{{- item['text'] | trim }}{%- endfor %}
    {%- else %}{{- raise_exception("Invalid content type") }}{%- endif %}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}
"""

PHI3 = r"""{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}
{{ '<|system|>\n' + message['content'] + '<|end|>\n' }}
{%- elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}
{%- elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}
"""

PHI4 = r"""{% for message in messages %}
{%- if message['role'] == 'system' and 'tools' in message and message['tools'] is not none -%}
{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}
{%- else -%}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{%- endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}
"""

_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_response>", "</tool_response>")
_INST = ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
_TURNS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
_ROLES = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

FAMILIES = {
    "Llama 3": (LLAMA3, _HEADERS, ("<|begin_of_text|>", "<|eot_id|>")),
    "Qwen 2.5": (QWEN2_5, _CHATML, (None, "<|im_end|>")),
    "Qwen 3": (QWEN3, _CHATML, (None, "<|im_end|>")),
    "SmolLM2": (SMOLLM2, _CHATML, ("<|im_start|>", "<|im_end|>")),
    "SmolLM3": (SMOLLM3, _CHATML, (None, "<|im_end|>")),
    "Mistral": (MISTRAL, _INST, ("<s>", "</s>")),
    "Gemma 2": (GEMMA2, _TURNS, ("<bos>", "<eos>")),
    "Gemma 3": (GEMMA3, _TURNS, ("<bos>", "<eos>")),
    "Phi 3": (PHI3, _ROLES, ("<|endoftext|>", "<|end|>")),
    "Phi 4 mini": (PHI4, _ROLES, ("<|endoftext|>", "<|end|>")),
}
